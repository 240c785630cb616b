package server

// chunkRows is how many rows go in one message of a streamed list: few enough
// to stay far below the largest message, whatever annotations they carry.
const chunkRows = 256

// chunkPods is how many pods go in one message of their metrics, of which each
// has hundreds.
const chunkPods = 16

// chunks sends list in pieces of so many rows. An empty list is no piece at all.
func chunks[T any](list []T, rows int, send func([]T) error) error {
	for len(list) > 0 {
		n := min(len(list), rows)
		if err := send(list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}
