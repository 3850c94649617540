//! Whether memory can be had, before it is asked for: a cgroup answers with SIGKILL.
