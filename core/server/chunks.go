package server

import "google.golang.org/protobuf/proto"

// chunkBytes is the size at which a message of a streamed list is sent. The kubelet
// accepts 16 MiB, and the annotations of one pod may be 256 KiB.
const chunkBytes = 1 << 20

// sendChunks calls send with parts of list of about chunkBytes each, at least one row
// each. It does not call send for an empty list.
func sendChunks[T proto.Message](list []T, send func([]T) error) error {
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
