package graphql

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
)

// A Classifier reads requests like [Parse] and [ParseMessage] and remembers
// the documents: programs send the same few again and again with other
// variables, and reading a document is most of the work. What it answers never
// differs from what those functions answer, except that requests may share the
// lists of fields, which must not be changed.
//
// The zero value is ready to use. All methods may be called from any
// goroutine. Set the fields before the first call, and do not copy it after.
//
// A document is found again by its exact text and the operationName beside it,
// compared in full; refused ones are not remembered. A client that never sends
// a document twice pays for one copy of each, and makes those who share the
// Classifier with it read theirs anew.
type Classifier struct {
	// MaxBytes limits what is remembered, in bytes, overhead included; a
	// document that would take more than a thirty-second of it is not.
	// 0: 1 MiB.
	MaxBytes int
	// MaxDocuments limits how many documents are remembered, rounded up to a
	// multiple of 16. 0: 1024.
	MaxDocuments int

	once   sync.Once
	seed   maphash.Seed
	shards [shards]shard
}

// shards is how many locks the memory has.
const shards = 8

// Parse is [Parse] with c's memory.
func (c *Classifier) Parse(in Input) (Result, error) { return parse(in, c.read) }

// ParseMessage is [ParseMessage] with c's memory.
func (c *Classifier) ParseMessage(subprotocol string, text []byte) (Message, error) {
	return parseMessage(subprotocol, text, c.read)
}

// A documentReader is readDocument, or answers like it.
type documentReader func(text, name string) (Operation, error)

// A sent is a document and the name that came with it. The maps that it is a
// key of compare both in full and hash with seeds of their own, so that nobody
// can choose documents to be taken for others, or to be slow.
type sent struct{ text, name string }

type remembered struct {
	sent
	Operation
}

// size is about what it takes, in bytes; the fields are parts of the text.
func (m *remembered) size() int {
	const overhead = 256 // itself, and its part of the map
	return overhead + len(m.text) + len(m.name) + 16*cap(m.Fields)
}

// A shard is a part of the memory: what was used lately, and what was before.
// When the younger half is full it becomes the older one, and the older one is
// forgotten. That takes the same little time whatever is sent.
type shard struct {
	mu         sync.Mutex
	young, old map[sent]*remembered
	bytes      int // in young

	maxBytes, maxCount int // of each half
}

func (c *Classifier) init() {
	c.seed = maphash.MakeSeed()
	bytes, count := c.MaxBytes, c.MaxDocuments
	if bytes <= 0 {
		bytes = 1 << 20
	}
	if count <= 0 {
		count = 1024
	}
	for i := range c.shards {
		c.shards[i].maxBytes, c.shards[i].maxCount = bytes/(2*shards), (count+2*shards-1)/(2*shards)
	}
}

func (c *Classifier) read(text, name string) (Operation, error) {
	c.once.Do(c.init)
	s := &c.shards[maphash.String(c.seed, text)%shards]
	if m := s.find(sent{text, name}); m != nil {
		return m.Operation, nil
	}
	// A copy of its own: the text is part of a body, and the operation's
	// strings are parts of the text.
	m := &remembered{sent: sent{strings.Clone(text), strings.Clone(name)}}
	var err error
	if m.Operation, err = readDocument(m.text, m.name); err != nil {
		return Operation{}, err
	}
	m.Fields = slices.Clip(slices.Clone(m.Fields)) // without the room that many aliases took
	if 2*m.size() <= s.maxBytes {
		s.keep(m)
	}
	return m.Operation, nil
}

func (s *shard) find(key sent) *remembered {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.young[key]; m != nil {
		return m
	}
	m := s.old[key]
	if m != nil {
		delete(s.old, key)
		s.add(m)
	}
	return m
}

func (s *shard) keep(m *remembered) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.young[m.sent] == nil { // else another request was quicker
		s.add(m)
	}
}

// add is for holders of mu; m is in neither half.
func (s *shard) add(m *remembered) {
	if s.bytes+m.size() > s.maxBytes || len(s.young) >= s.maxCount {
		s.old, s.young, s.bytes = s.young, nil, 0
	}
	if s.young == nil {
		s.young = make(map[sent]*remembered)
	}
	s.young[m.sent] = m
	s.bytes += m.size()
}
