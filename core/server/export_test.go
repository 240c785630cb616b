package server

// LimitResponses limits responses to n bytes. Call it before a Server serves.
func LimitResponses(n int) { maxResponse = n }
