//! Children of the test program.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Runs a child to its good end, and returns what it printed. It must not complain: what Margo and Mercury say is a failure.
pub(crate) fn run(name: &str, environment: &[(&str, &dyn AsRef<OsStr>)]) -> String {
    start(name, environment).unwrap_or_else(|error| panic!("child {name}: {error}"))
}

/// As `run`; what went wrong is the error. A variable that is set to nothing is taken away.
pub(crate) fn start(name: &str, environment: &[(&str, &dyn AsRef<OsStr>)]) -> Result<String, String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--child", name]);
    for (name, value) in environment {
        match value.as_ref().is_empty() {
            true => command.env_remove(name),
            false => command.env(name, value.as_ref()),
        };
    }
    // SAFETY: system calls alone, which a child of a process with threads may make.
    unsafe {
        command.pre_exec(|| {
            libc::alarm(SECONDS);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    };
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() && output.stderr.is_empty() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{}{} ({})", text(&output.stdout), text(&output.stderr), output.status)),
    }
}

/// After this a child that hangs is killed.
const SECONDS: u32 = 60;
