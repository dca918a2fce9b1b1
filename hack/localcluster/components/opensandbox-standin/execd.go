package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The form of OpenSandbox's commands. Exactly one of Command and Argv is there.
type commandRequest struct {
	Command    string            `json:"command"`
	Argv       []string          `json:"argv"`
	Cwd        string            `json:"cwd"`
	Background bool              `json:"background"`
	TimeoutMs  int64             `json:"timeout"`
	Envs       map[string]string `json:"envs"`
}

type eventError struct {
	Name      string   `json:"ename"`
	Value     string   `json:"evalue"`
	Traceback []string `json:"traceback"`
}

type event struct {
	Type          string      `json:"type"`
	Text          string      `json:"text,omitempty"`
	Error         *eventError `json:"error,omitempty"`
	ExecutionTime int64       `json:"execution_time,omitempty"`
	Timestamp     int64       `json:"timestamp"`
}

func newExecd() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", func(writer http.ResponseWriter, _ *http.Request) {
		writer.WriteHeader(http.StatusOK)
	})
	mux.HandleFunc("POST /command", runCommand)
	mux.HandleFunc("POST /files/upload", upload)
	mux.HandleFunc("GET /files/download", download)
	mux.HandleFunc("GET /metrics", metrics)
	return mux
}

func runCommand(writer http.ResponseWriter, request *http.Request) {
	var asked commandRequest
	if err := json.NewDecoder(request.Body).Decode(&asked); err != nil {
		refuse(writer, http.StatusBadRequest, err)
		return
	}
	words := asked.Argv
	if asked.Command != "" {
		words = []string{"/bin/sh", "-c", asked.Command}
	}
	if len(words) == 0 || asked.Background {
		refuse(writer, http.StatusBadRequest, errors.New("the stand-in runs commands in the foreground only"))
		return
	}
	limited := request.Context()
	if asked.TimeoutMs > 0 {
		limit := time.Duration(asked.TimeoutMs) * time.Millisecond
		timed, cancel := context.WithTimeout(limited, limit)
		defer cancel()
		limited = timed
	}
	command := exec.CommandContext(limited, words[0], words[1:]...)
	// Its children end with it, or the output would never be at its end.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	command.Dir = asked.Cwd
	command.Env = os.Environ()
	for name, value := range asked.Envs {
		command.Env = append(command.Env, name+"="+value)
	}
	stream(writer, command)
}

// stream runs a command and writes its events, each a JSON object and an empty line.
func stream(writer http.ResponseWriter, command *exec.Cmd) {
	stdout, _ := command.StdoutPipe()
	stderr, _ := command.StderrPipe()
	writer.Header().Set("Content-Type", "text/event-stream")
	var mutex sync.Mutex
	send := func(told event) {
		mutex.Lock()
		defer mutex.Unlock()
		told.Timestamp = time.Now().UnixMilli()
		text, _ := json.Marshal(told)
		_, _ = fmt.Fprintf(writer, "%s\n\n", text)
		_ = http.NewResponseController(writer).Flush()
	}
	send(event{Type: "init", Text: rand.Text()})
	started := time.Now()
	if err := command.Start(); err != nil {
		send(event{Type: "error", Error: &eventError{"CommandExecError", "127", []string{err.Error()}}})
		return
	}
	var readers sync.WaitGroup
	for kind, pipe := range map[string]io.Reader{"stdout": stdout, "stderr": stderr} {
		readers.Add(1)
		go func() {
			defer readers.Done()
			lines := bufio.NewReader(pipe)
			for {
				line, err := lines.ReadString('\n')
				if line != "" {
					send(event{Type: kind, Text: line})
				}
				if err != nil {
					return
				}
			}
		}()
	}
	readers.Wait()
	if err := command.Wait(); err != nil {
		code := strconv.Itoa(command.ProcessState.ExitCode())
		send(event{Type: "error", Error: &eventError{"CommandExecError", code, []string{}}})
		return
	}
	send(event{Type: "execution_complete", ExecutionTime: max(1, time.Since(started).Milliseconds())})
}

type fileMetadata struct {
	Path string `json:"path"`
	Mode int    `json:"mode"` // Its decimal digits are the octal ones: 644.
}

func upload(writer http.ResponseWriter, request *http.Request) {
	parts, err := request.MultipartReader()
	if err != nil {
		refuse(writer, http.StatusBadRequest, err)
		return
	}
	var metadata fileMetadata
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			writer.WriteHeader(http.StatusOK)
			return
		}
		if err == nil {
			err = store(part, &metadata)
		}
		if err != nil {
			refuse(writer, http.StatusBadRequest, err)
			return
		}
	}
}

// store reads one part: the metadata of the file that follows it, or the file.
func store(part *multipart.Part, metadata *fileMetadata) error {
	if part.FormName() == "metadata" {
		*metadata = fileMetadata{Mode: 644}
		return json.NewDecoder(part).Decode(metadata)
	}
	mode, err := strconv.ParseUint(strconv.Itoa(metadata.Mode), 8, 32)
	if err != nil || metadata.Path == "" {
		return fmt.Errorf("file without a good path and mode: %v", metadata)
	}
	if err := os.MkdirAll(filepath.Dir(metadata.Path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(metadata.Path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, os.FileMode(mode))
	if err != nil {
		return err
	}
	_, err = io.Copy(file, part)
	return errors.Join(err, file.Chmod(os.FileMode(mode)), file.Close())
}

func download(writer http.ResponseWriter, request *http.Request) {
	file, err := os.Open(request.URL.Query().Get("path"))
	if err != nil {
		refuse(writer, http.StatusNotFound, err)
		return
	}
	defer file.Close()
	writer.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(writer, request, "", time.Time{}, file)
}

func metrics(writer http.ResponseWriter, _ *http.Request) {
	memory := meminfo()
	answer(writer, http.StatusOK, map[string]any{
		"cpu_count":     runtime.NumCPU(),
		"cpu_used_pct":  cpuUsedPercent(),
		"mem_total_mib": memory["MemTotal"] / 1024,
		"mem_used_mib":  (memory["MemTotal"] - memory["MemAvailable"]) / 1024,
		"timestamp":     time.Now().UnixMilli(),
	})
}

// meminfo returns the numbers of /proc/meminfo, in KiB.
func meminfo() map[string]float64 {
	found := map[string]float64{}
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) >= 2 {
			found[strings.TrimSuffix(fields[0], ":")], _ = strconv.ParseFloat(fields[1], 64)
		}
	}
	return found
}

// cpuUsedPercent is the share of all processors since they were started; 0 where nothing says it.
func cpuUsedPercent() float64 {
	text, _ := os.ReadFile("/proc/stat")
	first, _, _ := strings.Cut(string(text), "\n")
	total, idle := 0.0, 0.0
	for position, field := range strings.Fields(first) {
		number, err := strconv.ParseFloat(field, 64)
		if err != nil {
			continue // The word "cpu".
		}
		total += number
		if position == 4 {
			idle = number
		}
	}
	if total == 0 {
		return 0
	}
	return 100 * (total - idle) / total
}
