//! `proxystore top`.

use std::io::{IsTerminal, Write, stdout};
use std::thread;
use std::time::Duration;

use clap::Args;
use proxystore::environment;

use crate::failure::Failure;
use crate::namespace::{self, NamespaceArgs};
use crate::stat::Figures;

/// Watch a node service: memory live, free, leased and pinned, and who has it
///
/// Puts and gets do not pass through the service, so nobody counts them. Ctrl-C ends it. Once, where standard output is no
/// terminal.
#[derive(Args)]
#[command(after_help = "\
Columns:
  OBJECTS, BYTES   what the process put and is still there    LEASES, LEASED   cells that it may put into
  VIEWS, PINNED    what it is reading                         OLDEST           how long it has read the oldest of them")]
pub(crate) struct Top {
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// Time between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_interval)]
    interval: Duration,
    /// End after this many looks [default: never at a terminal, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print JSON, one object a look
    #[arg(long)]
    json: bool,
}

impl Top {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let name = self.namespace.name()?;
        let namespace = namespace::find(&name)?;
        let is_terminal = stdout().is_terminal();
        let count = self.count.unwrap_or(if is_terminal { u64::MAX } else { 1 });
        for look in 0..count {
            if look > 0 {
                thread::sleep(self.interval);
            }
            let figures = Figures::ask(&namespace)?;
            let text = match self.json {
                true => serde_json::to_string(&figures).map_err(Failure::new)? + "\n",
                // Nothing but the cursor moves, so there is nothing to put right when it ends.
                false if is_terminal && count > 1 => screen(&figures.to_string(), look == 0),
                false => figures.to_string(),
            };
            let mut out = stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::stdout)?;
        }
        Ok(())
    }
}

/// The text from the upper left corner on; each line clears the rest of its own, and the last what is below.
fn screen(text: &str, is_first: bool) -> String {
    let begin = if is_first { "\x1b[2J\x1b[H" } else { "\x1b[H" };
    // A terminal that does not know its height says 0.
    let rows = rustix::termios::tcgetwinsize(stdout()).map_or(0, |size| usize::from(size.ws_row));
    let rows = if rows < 2 { 24 } else { rows };
    let lines: Vec<&str> = text.lines().take(rows - 1).collect();
    format!("{begin}{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n"))
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    match environment::parse_duration(text) {
        Some(interval) if !interval.is_zero() => Ok(interval),
        _ => Err("expected a duration above zero, as 250ms, 1s".to_owned()),
    }
}
