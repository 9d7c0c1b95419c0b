package datapath

// Pack puts the slots of a table into as few arena positions as the number of its seats allows: four,
// two or one each. It returns the positions and the Narrow of their frontends.
func Pack(slots []uint32, seats int) (positions []uint32, narrow uint8) {
	switch {
	case seats <= 1<<8:
		narrow = 2
	case seats <= 1<<16:
		narrow = 1
	default:
		return slots, 0
	}
	positions = make([]uint32, packedLen(uint32(len(slots)), narrow))
	for slot, seat := range slots {
		positions[slot>>narrow] |= seat << shift(slot, narrow)
	}
	return positions, narrow
}

// Unpack returns the slots of a frontend's table, whose positions were read from the arena.
func (f *Frontend) Unpack(positions []uint32) []uint32 {
	slots := make([]uint32, f.TableSlots())
	for slot := range slots {
		if at := slot >> f.Narrow; at < len(positions) {
			slots[slot] = f.Seat(uint32(slot), positions[at])
		}
	}
	return slots
}

// shift is where a slot's bits begin in its position.
func shift(slot int, narrow uint8) int { return slot & (1<<narrow - 1) * (32 >> narrow) }

// packedLen is how many positions that many slots take.
func packedLen(slots uint32, narrow uint8) uint32 { return (slots + 1<<narrow - 1) >> narrow }

// Position returns where in the arena a slot of a frontend's table is.
func (f *Frontend) Position(slot uint32) uint32 { return f.Table.Offset + slot>>f.Narrow }

// Seat returns the seat in a slot, out of what its position holds.
func (f *Frontend) Seat(slot, position uint32) uint32 {
	return position >> shift(int(slot), f.Narrow) & uint32(1<<(32>>f.Narrow)-1)
}

// TableSlots returns how many slots a frontend's table has.
func (f *Frontend) TableSlots() uint32 {
	if f.Slots == 0 {
		return f.Table.Len
	}
	return f.Slots
}
