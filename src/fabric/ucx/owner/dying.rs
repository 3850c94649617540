//! `Dying`: a requester that was given up with something on its way.

use std::net::IpAddr;

use super::Desk;

/// A connection of which UCX is to say that it is broken, or else it is closed by force.
pub(super) struct Dying {
    token: u64,
    hosts: Vec<IpAddr>,
    was_looked_at: bool,
}

impl Dying {
    pub(super) fn new(token: u64, hosts: &[IpAddr]) -> Self {
        Self { token, hosts: hosts.to_vec(), was_looked_at: false }
    }
}

impl Desk {
    /// Ends a connection of which UCX has said that it is broken.
    pub(super) fn broke(&mut self, token: u64) {
        self.forget(token);
        self.dying.retain(|dying| dying.token != token);
        self.worker.close(token);
    }

    /// Ends connections on which requesters that were given up take nothing, so that UCX says that they are broken; closes those of which
    /// it has not said so since the last time.
    pub(super) fn end_dying(&mut self) {
        if self.dying.is_empty() {
            return;
        }
        let hosts: Vec<IpAddr> = self.dying.iter().flat_map(|dying| &dying.hosts).copied().collect();
        // What others there have asked for is theirs to take for as long as they may.
        let is_shared = self.clients.values().any(|client| {
            client.flying > 0
                && self.hosts.get(&client.connection).is_some_and(|own| own.iter().any(|host| hosts.contains(host)))
        });
        let silence = self.shared.options.silence;
        self.worker.end_stuck(&hosts, if is_shared { silence } else { silence / 2 });
        let worker = &mut self.worker;
        self.dying.retain_mut(|dying| {
            if dying.was_looked_at {
                worker.close(dying.token);
            }
            !std::mem::replace(&mut dying.was_looked_at, true)
        });
    }
}
