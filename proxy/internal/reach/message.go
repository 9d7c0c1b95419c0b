package reach

import (
	"encoding/binary"
	"time"
)

// magic begins every probe: the datapath knows probes by it.
const magic = 0x74636c62

// What a probe consists of, big-endian: magic, the node's id (both read by the datapath), the token, the
// number of the segment. The rest up to its size is a pattern.
const (
	tokenAt    = 8
	indexAt    = 16
	headerSize = 20
	// beatSize is that of the probes that only ask whether somebody is there.
	beatSize = 64
)

// Answer is a probe that came back whole.
type Answer struct {
	Node  uint32
	Token uint64
	Index int // of a burst's segment
	Size  int // of the datagram's payload
	At    time.Time
}

// appendProbe adds one probe of a size to a datagram, or one segment of a burst.
func appendProbe(to []byte, node uint16, token uint64, index, size int) []byte {
	from := len(to)
	to = binary.BigEndian.AppendUint32(to, magic)
	to = binary.BigEndian.AppendUint32(to, uint32(node))
	to = binary.BigEndian.AppendUint64(to, token)
	to = binary.BigEndian.AppendUint32(to, uint32(index))
	for i := len(to) - from; i < size; i++ {
		to = append(to, pattern(i))
	}
	return to
}

func pattern(i int) byte { return byte(i*7 + i>>8) }

// ParseAnswer reads a datagram. It returns false for what no probe of ours looked like.
func ParseAnswer(data []byte, at time.Time) (Answer, bool) {
	if len(data) < headerSize || binary.BigEndian.Uint32(data) != magic {
		return Answer{}, false
	}
	for i, b := range data[headerSize:] {
		if b != pattern(headerSize+i) {
			return Answer{}, false
		}
	}
	return Answer{
		Node:  binary.BigEndian.Uint32(data[4:]),
		Token: binary.BigEndian.Uint64(data[tokenAt:]),
		Index: int(binary.BigEndian.Uint32(data[indexAt:])),
		Size:  len(data),
		At:    at,
	}, true
}
