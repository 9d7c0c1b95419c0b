// Package sched builds the lookup tables that the datapath indexes.
//
// A table says which backend serves which slot; a packet's slot is Slot(hash, size), the same
// multiplication in Go and in C. Nodes build their tables by themselves and must agree, so
// everything here is a function of member lists alone: integers only, no clock, no random
// numbers, no iteration over maps. Schedulers share one table; how a flow's index into it is
// made (hash, random number, counter) is the datapath's business.
//
// There are two tables. The base table (Base) says who owns a slot. It changes only when the
// member list does, and then as little as possible. The effective table (Base.Table) is what
// packets see: the base with the slots of members that may not take new flows lent to others.
// Health and drains thus never touch the base, and a member that comes back finds its slots as
// it left them.
//
// # Fresh bases
//
// New is Maglev: every member has a permutation of all slots, made from a frozen hash of its
// key, and the members take turns at picking the next free slot of theirs, in proportion to
// weight, until each has its quota. Quotas are exact, at least one slot for any weight above
// zero, and at least 100 slots for each member, so that no equal member is more than 1 % above
// its ideal.
//
// The size is a power of two and not a prime, although Maglev asks for one. What Maglev needs
// is that a permutation visits every slot, and modulo 2^k any odd skip does. In return a table
// can grow by splitting every slot in two: the index is made from the hash's high bits, so both
// halves keep the flows they had, and a service grows without moving any.
//
// # Updates
//
// Base.Update moves slots only from or to a member that is new or whose weight changed, never
// between two others. It works on seats. A seat is a position in the table and its slots;
// members sit in them:
//
//   - A member that is no longer listed leaves its seat gone but keeps its slots. If it returns
//     it finds the seat, and the mapping is what it was.
//   - A new member takes over a gone seat, if possible one of its own weight: a replaced
//     container inherits its predecessor's slots and nothing else moves. Without gone seats it
//     gets a new seat and takes its quota from seats that are above theirs.
//   - A member whose weight rises takes from seats above their quota; one whose weight falls
//     gives its surplus, as far as quotas allow, to where the effective table lends its slots
//     anyway, so that a return from maintenance with a lower weight moves next to nothing else.
//   - Weight 0 is maintenance, an exclusion: the seat keeps the slots of its last weight. A
//     member that never had a weight has a seat without slots.
//
// A base grows by doubling when its seats no longer fit and shrinks only by a new New. Gone
// seats need no renewal: a new member always prefers one to a new seat, so there are never more
// seats than members at the busiest time (plus those that waited for their first weight).
// Whoever wants the memory back after a service shrank for good calls New, and accepts that
// flows move.
//
// # Exclusions
//
// The slot of an excluded seat is lent to the owner of the first slot on its walk (Probe) that
// is not excluded. The walk of a slot depends on nothing but its number and the size. So to
// exclude a seat changes only the slots that it effectively had, in whatever order seats go and
// come.
//
// Slots that are lent have no owner of their own to hold them, so a rare update moves some: who gets
// the surplus of an excluded member whose weight falls is met by the walks of other lent slots
// too. Slots that are not lent never move, and what is lent stays where it is when a table doubles.
//
// # Sequences
//
// Schedulers that take turns use a list instead of a table: Base.AppendSequence has the seats in
// smooth weighted order.
package sched
