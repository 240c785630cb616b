package netns

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTrafficReturnsCountersOfAllInterfacesButLoopback(t *testing.T) {
	got, err := parseTraffic([]byte(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     500       5    0    0    0     0          0         0      500       5    0    0    0     0       0          0
  eth0: 1234567      89    1    2    0     0          0         0   765432      98    3    4    0     0       0          0
`))
	want := []Counters{{Name: "eth0", RxBytes: 1234567, RxPackets: 89, RxErrors: 1, RxDropped: 2, TxBytes: 765432, TxPackets: 98, TxErrors: 3, TxDropped: 4}}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := parseTraffic([]byte("eth0: 1 2\n")); err == nil {
		t.Error("an incomplete line was accepted")
	}
	if _, err := Traffic(os.Getpid()); err != nil {
		t.Error(err)
	}
}

// The kernel accepts any bytes in the name of an interface.
func TestTrafficQuotesNamesThatAreNotUTF8(t *testing.T) {
	all, err := parseTraffic([]byte("  a\xff: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n"))
	if err != nil || len(all) != 1 || all[0].Name != `a\xff` || all[0].TxDropped != 8 {
		t.Errorf("%+v, %v", all, err)
	}
}
