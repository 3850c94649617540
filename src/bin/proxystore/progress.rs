//! `Progress`: how far a transfer is, for people at terminals.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on standard error, once a transfer has taken so long that somebody wonders. Nothing when it is no terminal.
pub(crate) struct Progress {
    verb: &'static str,
    len: Option<u64>,
    done: u64,
    visible_from: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A transfer of `len` bytes, if that is known.
    pub(crate) fn new(verb: &'static str, len: Option<usize>) -> Self {
        let visible_from = stderr().is_terminal().then(|| Instant::now() + PATIENCE);
        Self { verb, len: len.map(|len| len as u64), done: 0, visible_from, bar: None }
    }

    /// Counts `bytes` more.
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if self.visible_from.is_some_and(|at| Instant::now() >= at) {
            self.visible_from = None;
            self.bar = Some(self.bar());
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }

    fn bar(&self) -> ProgressBar {
        let (bar, template) = match self.len {
            Some(len) => (
                ProgressBar::new(len),
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
            ),
            None => (ProgressBar::no_length(), "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}"),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.with_style(style).with_message(self.verb)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How long a transfer stays quiet.
const PATIENCE: Duration = Duration::from_millis(500);
