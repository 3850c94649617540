//! Own pid namespaces: nothing that the soak kills can be anybody else's.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Why this process cannot make namespaces, if it cannot.
pub(crate) fn missing() -> Result<(), String> {
    let output = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "--kill-child", "true"]).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("needs unshare: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("needs unshare(1): {error}")),
    }
}

/// This program with `arguments`, as process 1 of a pid namespace of its own.
pub(crate) fn command(arguments: &[String]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]);
    command.arg(std::env::current_exe().expect("the path of this program")).args(arguments);
    command.env(PARENT, own().expect("/proc/self/ns/pid"));
    // SAFETY: prctl(2) only.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
    command
}

/// Ends the process unless it is process 1 of another namespace than that of whoever called [`command`].
pub(crate) fn prove() {
    let parent = std::env::var(PARENT).unwrap_or_default();
    let own = own().expect("/proc/self/ns/pid").to_string_lossy().into_owned();
    let is_proven = std::process::id() == 1 && own.starts_with("pid:[") && parent.starts_with("pid:[") && own != parent;
    if !is_proven {
        eprintln!("this would kill processes, and is not in a pid namespace of its own: {own}, parent {parent}");
        std::process::exit(2);
    }
}

fn own() -> io::Result<PathBuf> {
    std::fs::read_link("/proc/self/ns/pid")
}

const PARENT: &str = "SHM_TEST_PARENT_PID_NAMESPACE";
