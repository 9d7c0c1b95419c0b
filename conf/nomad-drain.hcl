# Nomad: a task to put into the group of a service's tasks, so that an allocation stops without a failed
# request. Nomad stops the leader of a group first; it drains the allocation in all services that it
# serves, waits until the last connection is gone, 25 seconds at most, and only then ends. The other
# tasks are stopped after it. raw_exec has to be enabled on the client; the task runs as root, on
# the host.
#
# No other task of the group may be the leader.

task "tclb-drain" {
  driver       = "raw_exec"
  leader       = true
  kill_timeout = "30s"

  config {
    command = "/bin/sh"
    args = ["-c", "trap '/usr/local/bin/tclb endpoint drain --wait=25s \"$NOMAD_ALLOC_ID\"; exit 0' TERM INT; while :; do sleep 3600 & wait; done"]
  }

  resources {
    cpu    = 10
    memory = 16
  }
}
