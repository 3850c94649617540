//! `Exporting`: how a node begins to answer others. It takes longer than the service's thread has time for: names are looked
//! up, a port is found, and the answering side is a client of this very service.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::{mem, thread};

use rustix::event::{EventfdFlags, eventfd};

use super::{Event, Server};
use crate::error::{Error, Result};
use crate::service::contact;
use crate::service::exported::Exported;
use crate::service::message::Reply;
use crate::sync::lock;

/// Whether other nodes are answered.
pub(super) struct Exporting {
    state: State,
    outcome: Arc<Outcome>,
    /// Who wants to know where: connections and requests.
    asked: Vec<(u32, u64)>,
    /// It was said that it cannot begin.
    warned: bool,
}

enum State {
    No,
    Beginning,
    Yes(Exported),
}

/// What came of beginning, from the thread that did.
struct Outcome {
    result: Mutex<Option<Result<Exported>>>,
    there: OwnedFd,
}

impl Exporting {
    pub(super) fn new() -> Result<Self> {
        let there = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::io("serve", "an eventfd", errno.into()))?;
        let outcome = Arc::new(Outcome { result: Mutex::default(), there });
        Ok(Self { state: State::No, outcome, asked: Vec::new(), warned: false })
    }
}

impl Server {
    /// Goes on where a former service stopped, under its address.
    pub(super) fn export_again(&mut self) -> Result<()> {
        self.watch(&self.exporting.outcome.there, Event::Exported)?;
        if let Some(former) = contact::read(&self.memory.table) {
            self.begin_export(Some(former));
        }
        Ok(())
    }

    /// Tells a client where other nodes are answered; begins with it where nobody asked before.
    pub(super) fn export(&mut self, connection: u32, id: u64) {
        match &self.exporting.state {
            State::Yes(exported) => {
                let contact = exported.contact();
                return self.send(connection, &Reply::Exported { id, contact }, &[]);
            }
            State::No => self.begin_export(contact::read(&self.memory.table)),
            State::Beginning => {}
        }
        self.exporting.asked.push((connection, id));
    }

    /// Tries again where others were answered before and could not be when this service began.
    pub(super) fn retry_export(&mut self) {
        if let (State::No, Some(former)) = (&self.exporting.state, contact::read(&self.memory.table)) {
            self.begin_export(Some(former));
        }
    }

    fn begin_export(&mut self, former: Option<SocketAddr>) {
        let outcome = Arc::clone(&self.exporting.outcome);
        let namespace = self.directory.namespace();
        let begin = move || {
            let result = Exported::begin(&namespace, former);
            *lock(&outcome.result) = Some(result);
            let _ = rustix::io::write(&outcome.there, &1u64.to_le_bytes());
        };
        self.exporting.state = State::Beginning;
        if let Err(error) = thread::Builder::new().name("proxystore-export".to_owned()).spawn(begin) {
            let error = Error::io("open", "a thread to answer other nodes", error);
            *lock(&self.exporting.outcome.result) = Some(Err(error));
            let _ = rustix::io::write(&self.exporting.outcome.there, &1u64.to_le_bytes());
        }
    }

    /// The thread that began is done.
    pub(super) fn exported(&mut self) {
        let _ = rustix::io::read(&self.exporting.outcome.there, &mut [0; 8]);
        let Some(result) = lock(&self.exporting.outcome.result).take() else { return };
        let answer = match result {
            Ok(exported) => {
                let contact = exported.contact();
                contact::write(&self.memory.table, contact);
                self.exporting.state = State::Yes(exported);
                Ok(contact)
            }
            Err(error) => {
                self.exporting.state = State::No;
                let was_there = contact::read(&self.memory.table).is_some();
                if was_there && !mem::replace(&mut self.exporting.warned, true) {
                    eprintln!("proxystore: warning: other nodes cannot be answered, it is tried again: {error}");
                }
                Err(error)
            }
        };
        for (connection, id) in mem::take(&mut self.exporting.asked) {
            let reply = match &answer {
                Ok(contact) => Reply::Exported { id, contact: *contact },
                Err(error) => Reply::refuse(id, error),
            };
            self.send(connection, &reply, &[]);
        }
    }
}
