package rules

// judgeRequest decides one request of an inspected connection, at stage HTTP
// or GraphQL. offered are the endpoint rules of the flow's layer for its
// host, port and program, most specific first; trace, when not nil, is told
// about each endpoint and rule that was looked at.
//
// The decision's Rule is one of offered whenever one of them made it.
func judgeRequest(offered []*Rule, r *Request, trace func(Step)) Decision {
	return Decision{Verdict: Deny, Layer: Default, Reason: "no endpoint allows this request"}
}
