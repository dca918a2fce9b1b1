package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

type envVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type process struct {
	Command        []string `json:"command"`
	Args           []string `json:"args,omitempty"`
	Env            []envVar `json:"env,omitempty"`
	WorkingDir     string   `json:"workingDir,omitempty"`
	TimeoutSeconds *int64   `json:"timeoutSeconds,omitempty"`
}

type runningState struct {
	StartedAt time.Time `json:"startedAt"`
}

type terminatedState struct {
	ExitCode   int       `json:"exitCode"`
	Reason     string    `json:"reason,omitempty"`
	Message    string    `json:"message,omitempty"`
	StartedAt  time.Time `json:"startedAt"`
	FinishedAt time.Time `json:"finishedAt"`
}

type processStatus struct {
	Running    *runningState    `json:"running,omitempty"`
	Terminated *terminatedState `json:"terminated,omitempty"`
}

type task struct {
	Name    string         `json:"name"`
	Process *process       `json:"process,omitempty"`
	Status  *processStatus `json:"processStatus,omitempty"`

	running *exec.Cmd
}

// taskExecutor runs the tasks that it is told to have: those it has are left alone, others stopped.
type taskExecutor struct {
	mutex sync.Mutex
	tasks []*task
}

func newTaskExecutor() http.Handler {
	executor := &taskExecutor{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /setTasks", executor.setTasks)
	mux.HandleFunc("GET /getTasks", func(writer http.ResponseWriter, _ *http.Request) {
		answer(writer, http.StatusOK, executor.list())
	})
	mux.HandleFunc("GET /health", func(writer http.ResponseWriter, _ *http.Request) {
		answer(writer, http.StatusOK, map[string]string{"status": "healthy"})
	})
	return mux
}

func (e *taskExecutor) setTasks(writer http.ResponseWriter, request *http.Request) {
	var wanted []*task
	if err := json.NewDecoder(request.Body).Decode(&wanted); err != nil {
		refuse(writer, http.StatusBadRequest, err)
		return
	}
	if err := e.replace(wanted); err != nil {
		refuse(writer, http.StatusInternalServerError, err)
		return
	}
	answer(writer, http.StatusOK, e.list())
}

func (e *taskExecutor) replace(wanted []*task) error {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	known := map[string]*task{}
	for _, has := range e.tasks {
		known[has.Name] = has
	}
	kept := []*task{}
	var failure error
	for _, asked := range wanted {
		if has := known[asked.Name]; has != nil {
			kept = append(kept, has)
			delete(known, asked.Name)
			continue
		}
		kept = append(kept, asked)
		if err := e.start(asked); err != nil {
			failure = err
		}
	}
	for _, unwanted := range known {
		if unwanted.Status.Running != nil {
			_ = syscall.Kill(-unwanted.running.Process.Pid, syscall.SIGKILL)
		}
	}
	e.tasks = kept
	return failure
}

func (e *taskExecutor) start(asked *task) error {
	started := time.Now().UTC()
	if asked.Process == nil || len(asked.Process.Command) == 0 {
		asked.Status = ended(started, 1, "task has no command")
		return nil
	}
	words := append(append([]string{}, asked.Process.Command...), asked.Process.Args...)
	command := exec.Command(words[0], words[1:]...)
	command.Env = os.Environ()
	for _, variable := range asked.Process.Env {
		command.Env = append(command.Env, variable.Name+"="+variable.Value)
	}
	command.Dir = asked.Process.WorkingDir
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		asked.Status = ended(started, 127, err.Error())
		return err
	}
	log.Printf("task %s runs", asked.Name)
	asked.running, asked.Status = command, &processStatus{Running: &runningState{started}}
	if limit := asked.Process.TimeoutSeconds; limit != nil {
		time.AfterFunc(time.Duration(*limit)*time.Second, func() {
			_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
		})
	}
	go func() {
		err := command.Wait()
		e.mutex.Lock()
		defer e.mutex.Unlock()
		message := ""
		if err != nil {
			message = err.Error()
		}
		asked.Status = ended(started, command.ProcessState.ExitCode(), message)
		log.Printf("task %s has ended with %d", asked.Name, command.ProcessState.ExitCode())
	}()
	return nil
}

func ended(started time.Time, code int, message string) *processStatus {
	reason := "Succeeded"
	if code != 0 {
		reason = "Failed"
	}
	return &processStatus{
		Terminated: &terminatedState{code, reason, message, started, time.Now().UTC()},
	}
}

func (e *taskExecutor) list() []task {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	listed := make([]task, 0, len(e.tasks))
	for _, has := range e.tasks {
		listed = append(listed, task{Name: has.Name, Process: has.Process, Status: has.Status})
	}
	return listed
}
