//! `proxystore completions`.

use std::io::{Write, stdout};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::{Cli, VERSION};

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = "\
Examples:
  proxystore completions bash > ~/.local/share/bash-completion/completions/proxystore
  proxystore completions fish > ~/.config/fish/completions/proxystore.fish")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<(), Failure> {
        // Into memory first: the generator panics when its writer fails.
        let mut script = Vec::new();
        let all = Cli::command();
        let visible = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
        let mut command = Command::new("proxystore").version(VERSION).subcommands(visible);
        clap_complete::generate(self.shell, &mut command, "proxystore", &mut script);
        stdout().write_all(&script).map_err(Failure::stdout)
    }
}
