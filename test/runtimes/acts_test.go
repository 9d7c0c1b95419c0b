package runtimes

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// With one of these variables set the test binary is another program, on a machine.
const (
	actAsRuntime = "TCLB_TEST_ACT_AS_RUNTIME" // a call, in JSON
	actAsClient  = "TCLB_TEST_ACT_AS_CLIENT"  // the address to ask
)

// act is the main function of those programs.
func act() {
	var err error
	switch {
	case os.Getenv(actAsInit) != "":
		beInit(os.Getenv(actAsInit))
	case os.Getenv(actAsRuntime) != "":
		err = beRuntime(os.Getenv(actAsRuntime))
	case os.Getenv(actAsClient) != "":
		err = beClient(os.Getenv(actAsClient), os.Stdin, os.Stdout)
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// self returns a command that runs the test binary on the machine as another program.
func (m *machine) self(variable, value string, before ...string) *exec.Cmd {
	m.Helper()
	binary, err := os.Executable()
	m.must(err)
	cmd := m.command(append(before, binary)...)
	cmd.Env = append(cmd.Env, variable+"="+value)
	return cmd
}

// call is what a runtime asks of libcni.
type call struct {
	Verb, Conflist, ID, Netns string
	Args                      [][2]string
	Capabilities              map[string]any
}

// cni makes a call as a runtime does, with libcni's cache at its usual place.
func (m *machine) cni(c call) error {
	m.Helper()
	data, err := json.Marshal(c)
	m.must(err)
	_, err = output(m.self(actAsRuntime, string(data)), []string{"cni", c.Verb, c.ID})
	return err
}

func beRuntime(text string) error {
	var c call
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	list, err := libcni.ConfListFromFile(c.Conflist)
	if err != nil {
		return err
	}
	config := libcni.NewCNIConfig([]string{"/opt/cni/bin"}, nil)
	rt := &libcni.RuntimeConf{ContainerID: c.ID, NetNS: c.Netns, IfName: "eth0", Args: c.Args, CapabilityArgs: c.Capabilities}
	switch c.Verb {
	case "ADD":
		_, err = config.AddNetworkList(context.Background(), list, rt)
	case "DEL":
		err = config.DelNetworkList(context.Background(), list, rt)
	default:
		err = fmt.Errorf("unknown verb %q", c.Verb)
	}
	return err
}

// verdicts of a client.
const (
	refused   = "CONNECT" // no connection came about
	cut       = "CUT"     // there was one, and it ended without an answer
	requested = "TOTAL"
)

// beClient sends one request after the other until in ends, and writes a line for each that failed and
// at last how many there were.
func beClient(address string, in io.Reader, out io.Writer) error {
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(done)
	}()
	total := 0
	for ; ; total++ {
		select {
		case <-done:
			_, err := fmt.Fprintln(out, requested, total)
			return err
		default:
		}
		began := time.Now()
		if verdict, err := request(address); err != nil {
			fmt.Fprintf(out, "%s after %s at %s: %v\n", verdict, time.Since(began).Round(time.Millisecond), began.Format("05.000"), err)
		}
		time.Sleep(time.Millisecond) // a client, not a benchmark: the runtimes need the processors
	}
}

// request asks for one page over a connection of its own.
func request(address string) (verdict string, err error) {
	conn, err := net.DialTimeout("tcp", address, 8*time.Second)
	if err != nil {
		return refused, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(8 * time.Second)); err != nil {
		return cut, err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return cut, err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.Contains(line, " 200 ") {
		err = fmt.Errorf("answer %q", line)
	}
	return cut, err
}
