// Resolves each name of the command line with Go's own resolver.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	for _, name := range os.Args[1:] {
		start := time.Now()
		found, err := net.DefaultResolver.LookupIPAddr(context.Background(), name)
		fmt.Printf("%s %d", name, time.Since(start).Microseconds())
		if err != nil {
			not, ok := err.(*net.DNSError)
			fmt.Printf(" !notfound=%t", ok && not.IsNotFound)
		}
		for _, one := range found {
			fmt.Print(" ", one.IP)
		}
		fmt.Println()
	}
}
