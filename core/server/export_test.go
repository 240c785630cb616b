package server

// LimitAnswers has answers fit into n bytes. It is to be called before a Server serves.
func LimitAnswers(n int) { fitBytes = n }
