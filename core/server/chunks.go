package server

import "google.golang.org/protobuf/proto"

// chunkBytes is about how much of a list goes in one message of a stream: the
// kubelet takes 16 MiB, and one pod's annotations alone may be 256 KiB.
const chunkBytes = 1 << 20

// chunks sends list in pieces of about chunkBytes each, and of one row at least. An
// empty list is no piece at all.
func chunks[T proto.Message](list []T, send func([]T) error) error {
	for len(list) > 0 {
		n := 1
		for size := proto.Size(list[0]); n < len(list); n++ {
			if size += proto.Size(list[n]); size > chunkBytes {
				break
			}
		}
		if err := send(list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}
