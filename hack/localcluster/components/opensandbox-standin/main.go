// Command opensandbox-standin stands in for what runs in a sandbox of OpenSandbox, in tests only:
// "task-executor" takes the command to run, "execd" serves the SDK. Upstream's programs cannot be had
// where the tests run. It keeps to their wire as far as a lifecycle test needs it and to nothing else:
// no authentication, no sessions, no background commands, no code interpreter.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
)

const (
	taskExecutorPort = 5758
	execdPort        = 44772
)

func main() {
	// The image has it under both names, as upstream has two programs.
	program := filepath.Base(os.Args[0])
	arguments := os.Args[1:]
	if program != "task-executor" && program != "execd" && len(arguments) > 0 {
		program, arguments = arguments[0], arguments[1:]
	}
	flags := flag.NewFlagSet(program, flag.ExitOnError)
	address := flags.String("address", "", "where to listen; everywhere by default")
	_ = flags.Parse(arguments)
	log.SetPrefix(program + " (stand-in): ")

	var handler http.Handler
	var port int
	switch program {
	case "task-executor":
		handler, port = newTaskExecutor(), taskExecutorPort
	case "execd":
		handler, port = newExecd(), execdPort
	default:
		fmt.Fprintln(os.Stderr, "usage: opensandbox-standin task-executor|execd [-address ADDRESS]")
		os.Exit(2)
	}
	// The first process of a container has to ask for the signals that end it.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		os.Exit(0)
	}()
	log.Fatal(http.ListenAndServe(net.JoinHostPort(*address, strconv.Itoa(port)), handler))
}

func answer(writer http.ResponseWriter, status int, body any) {
	writer.Header().Set("Content-Type", "application/json")
	writer.WriteHeader(status)
	_ = json.NewEncoder(writer).Encode(body)
}

func refuse(writer http.ResponseWriter, status int, err error) {
	answer(writer, status, map[string]string{"message": err.Error()})
}
