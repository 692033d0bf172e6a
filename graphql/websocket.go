package graphql

// The subprotocols of GraphQL over WebSocket.
const (
	// TransportWS is the protocol of the graphql-ws library.
	TransportWS = "graphql-transport-ws"
	// LegacyWS is the protocol of the subscriptions-transport-ws library.
	LegacyWS = "graphql-ws"
)

const (
	keyType    = "type"
	keyPayload = "payload"
)

// Message is one text message from a client that was understood. Text is
// written anew from what was read and is to be sent on in its place.
type Message struct {
	Type       string      // as on the wire, such as subscribe or ping
	Operations []Operation // one for subscribe and start, else none
	Text       []byte
}

// What a client may send, and whether it must carry an id.
type messageKind struct {
	operation bool // payload is an envelope
	id        bool
	payload   bool // payload is passed on as it came
}

func kindOf(subprotocol, typ string) (messageKind, bool) {
	operation := messageKind{operation: true, id: true}
	switch subprotocol + " " + typ {
	case TransportWS + " subscribe", LegacyWS + " start":
		return operation, true
	case TransportWS + " complete", LegacyWS + " stop":
		return messageKind{id: true}, true
	case TransportWS + " connection_init", LegacyWS + " connection_init",
		TransportWS + " ping", TransportWS + " pong":
		return messageKind{payload: true}, true
	case LegacyWS + " connection_terminate":
		return messageKind{}, true
	}
	return messageKind{}, false
}

// ParseMessage reads one text message that a client sent after subprotocol was
// agreed on. The payload of subscribe (start in the legacy protocol) is judged
// like the object of a POST. Every error is an *Error, upon which the socket
// must be closed. The caller limits the size of messages.
func ParseMessage(subprotocol string, text []byte) (Message, error) {
	return parseMessage(subprotocol, text, readDocument)
}

func parseMessage(subprotocol string, text []byte, read documentReader) (Message, error) {
	if subprotocol != TransportWS && subprotocol != LegacyWS {
		return Message{}, refuse(UnsupportedSubprotocol, "a WebSocket without a known GraphQL subprotocol: speak %s or %s", TransportWS, LegacyWS)
	}
	if err := checkText(text); err != nil {
		return Message{}, err
	}
	r := &reader{text: string(text), out: make([]byte, 0, len(text))}
	if c := r.peek(); c != '{' {
		if err := r.value(); err != nil {
			return Message{}, err
		}
		return Message{}, refuse(WrongType, "a message is an object")
	}
	// The type, which says what the payload is, may come after it: the payload
	// is read as JSON here and as what it is below.
	var typ, id, payload string
	err := r.object(func(key string) (bool, error) {
		var err error
		switch key {
		case keyType:
			typ, err = r.optionalString(key)
		case keyID:
			id, err = r.optionalString(key)
		case keyPayload:
			mark := len(r.out)
			err = r.value()
			payload = string(r.out[mark:])
		default:
			if err := checkVariant(key, func(c string) bool { return c == keyType || c == keyID || c == keyPayload }); err != nil {
				return false, err
			}
			err = r.value()
		}
		return false, err
	})
	if err == nil {
		err = r.end()
	}
	if err != nil {
		return Message{}, err
	}
	kind, ok := kindOf(subprotocol, typ)
	if !ok {
		return Message{}, refuse(UnknownMessage, "message of another type%s than clients send in %s", known(typ, "subscribe", "start", "complete", "stop",
			"connection_init", "connection_ack", "connection_error", "connection_terminate", "ping", "pong", "next", "data", "error", "ka"), subprotocol)
	}
	if kind.id && id == "" {
		return Message{}, refuse(WrongType, "message of type %q needs an id, a string", typ)
	}
	return kind.message(typ, id, payload, read)
}

// message reads the payload, which is valid JSON or "", and writes the message.
func (k messageKind) message(typ, id, payload string, read documentReader) (Message, error) {
	m := Message{Type: typ}
	r := &reader{text: payload, depth: 1}
	r.out = appendString(append(r.out, `{"type":`...), typ)
	if id != "" {
		r.out = appendString(append(r.out, `,"id":`...), id)
	}
	mark := len(r.out)
	r.out = append(r.out, `,"payload":`...)
	switch {
	case k.operation && payload == "":
		return Message{}, refuse(MissingDocument, "message of type %q without a payload", typ)
	case k.operation:
		op, err := readEnvelope(r, read)
		if err != nil {
			return Message{}, err
		}
		m.Operations = []Operation{op}
	case k.payload && payload != "":
		there, err := r.optionalObject(keyPayload, func(string) (bool, error) { return true, r.value() })
		if err != nil {
			return Message{}, err
		}
		if !there {
			r.out = r.out[:mark]
		}
	default:
		r.out = r.out[:mark]
	}
	m.Text = append(r.out, '}')
	return m, nil
}
