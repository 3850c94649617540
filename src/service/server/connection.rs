//! Connections of the service: who comes in, and what is sent to whom.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Relaxed, Release};

use rustix::event::epoll;

use super::{Client, Event, INDEX_BITS, Server, index_of};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::service::message::Reply;
use crate::service::wire::{Peer, Sent, Socket};
use crate::shm::layout::{Layout, client};
use crate::shm::segment::Segment;

pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) peer: Peer,
    pub(super) client: Option<u32>,
    /// What the socket had no room for.
    pub(super) outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

impl Server {
    pub(super) fn hello(
        &mut self,
        number: u32,
        layout: u64,
        reattach: Option<u64>,
        held: &[(u16, u64)],
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        failpoint!("service.hello");
        if layout != Layout::VERSION {
            let context = format!(
                "the service of this namespace has layout {}, the client {layout}: use one version of proxystore in a job",
                Layout::VERSION
            );
            return Err(Error::new(ErrorKind::Incompatible, "open", context));
        }
        if self.draining.is_some() {
            return Err(Error::new(ErrorKind::Unavailable, "open", "the service is ending"));
        }
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        if connection.client.is_some() {
            return Err(Error::new(ErrorKind::Invalid, "open", "greeted twice"));
        }
        let pidfd = connection.peer.pidfd.take();
        let pid = connection.peer.pid.unwrap_or(0);
        let index = match reattach {
            Some(tag) => {
                let index = index_of(tag);
                match self.clients.get_mut(&index) {
                    Some(client) if client.tag == tag => {
                        if pidfd.is_some() {
                            client.pidfd = pidfd;
                        }
                        // What it was asked over another connection it may not have heard.
                        (client.recalled, client.silent) = (false, false);
                        if let Some(former) = client.connection.replace(number) {
                            if former != number {
                                self.disconnect(former);
                            }
                        }
                    }
                    _ => {
                        return Err(Error::new(
                            ErrorKind::Stale,
                            "open",
                            "the service does not know this client any more",
                        ));
                    }
                }
                index
            }
            None => {
                let free = |index: &u32| !self.clients.contains_key(index);
                let Some(index) = (0..Layout::SHARED.clients).find(free) else {
                    return Err(Error::new(
                        ErrorKind::NoSpace,
                        "open",
                        "the namespace has as many clients as it can have",
                    ));
                };
                let tag = self.next_tag << INDEX_BITS | u64::from(index);
                self.next_tag = (self.next_tag + 1) & (u64::MAX >> (INDEX_BITS + 1));
                self.clients.insert(
                    index,
                    Client { tag, connection: Some(number), pidfd, locked: false, recalled: false, silent: false },
                );
                index
            }
        };
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.client = Some(index);
        }
        let done = self.welcome(number, index, pid, reattach.is_some());
        match reattach {
            None if done.is_err() => self.bury(index),
            None => {}
            // Not before it is welcome: this tells everybody of what is new.
            Some(_) => self.adopt_segments(held, fds),
        }
        done
    }

    fn welcome(&mut self, number: u32, index: u32, pid: u32, is_back: bool) -> Result<()> {
        let client = &self.clients[&index];
        let tag = client.tag;
        if let Some(pidfd) = &client.pidfd {
            let watched = self.watch(pidfd, Event::Death(tag));
            // One that came back without a new descriptor is watched already.
            if !is_back {
                watched?;
            }
        }
        self.memory.table.client(index, client::PID).store(pid as u64, Relaxed);
        self.memory.table.client(index, client::TAG).store(tag, Release);
        let pin_page = if is_back { u32::MAX } else { self.memory.page(tag)? };
        let segments: Vec<(u16, u64)> =
            self.memory.segments().iter().map(|(index, segment)| (*index, segment.len() as u64)).collect();
        let welcome = Reply::Welcome {
            tag,
            index,
            instance: self.memory.instance(),
            ctl_len: self.memory.ctl().len() as u64,
            pin_page,
            segments,
            host: std::process::id(),
        };
        let mut fds = vec![self.memory.ctl().descriptor()?];
        for segment in self.memory.segments().values() {
            fds.push(segment.descriptor()?);
        }
        self.send_owned(number, &welcome, fds);
        failpoint!("service.welcomed");
        Ok(())
    }

    /// Memory that a former service made and did not live to tell anybody but this client of.
    fn adopt_segments(&mut self, held: &[(u16, u64)], fds: Vec<OwnedFd>) {
        for ((index, len), fd) in held.iter().zip(fds.into_iter().skip(1)) {
            if !self.memory.segments().contains_key(index) {
                if let Ok(segment) = Segment::adopt(fd, *len as usize) {
                    if self.memory.adopt_segment(*index, segment) {
                        self.announce(&[*index]);
                    }
                }
            }
        }
    }

    pub(super) fn reply(&mut self, connection: Option<u32>, reply: &Reply) {
        // Who is not connected asks again when it is.
        if let Some(connection) = connection {
            self.send(connection, reply, &[]);
        }
    }

    pub(super) fn send(&mut self, number: u32, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let owned: Result<Vec<OwnedFd>, _> = fds.iter().map(|fd| fd.try_clone_to_owned()).collect();
        match owned {
            Ok(owned) => self.send_owned(number, reply, owned),
            // Out of descriptors. It comes back, and is then told everything; silence would be waited for.
            Err(_) => self.disconnect(number),
        }
    }

    pub(super) fn send_owned(&mut self, number: u32, reply: &Reply, fds: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let mut packet = Vec::new();
        if reply.encode(&mut packet).is_err() {
            // Longer than a packet: no reply of ours is.
            return self.disconnect(number);
        }
        connection.outbox.push_back((packet, fds));
        if connection.outbox.len() > MOST_UNREAD {
            // It does not read: it is stopped, and connects again when it goes on.
            return self.disconnect(number);
        }
        self.flush(number);
    }

    pub(super) fn flush(&mut self, number: u32) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let had = !connection.outbox.is_empty();
        while let Some((packet, fds)) = connection.outbox.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match connection.socket.send(packet, &borrowed) {
                Ok(Sent::Done) => drop(connection.outbox.pop_front()),
                Ok(Sent::WouldBlock) => break,
                // It has closed its end. What it said before that is read next, its farewell for one.
                Err(error) if error.kind() == ErrorKind::Closed => connection.outbox.clear(),
                Err(_) => return self.disconnect(number),
            }
        }
        let flags = match connection.outbox.is_empty() {
            true if !had => return,
            true => epoll::EventFlags::IN,
            false => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        };
        let data = epoll::EventData::new_u64(Event::Connection(number).number());
        let _ = epoll::modify(&self.epoll, &connection.socket, data, flags);
    }

    /// Forgets a connection. The client is there until its process ends.
    pub(super) fn disconnect(&mut self, number: u32) {
        if let Some(connection) = self.connections.remove(&number) {
            let _ = epoll::delete(&self.epoll, &connection.socket);
            if let Some(client) = connection.client.and_then(|index| self.clients.get_mut(&index)) {
                if client.connection == Some(number) {
                    client.connection = None;
                }
            }
        }
    }
}

/// Replies that wait for a client that does not read.
const MOST_UNREAD: usize = 4096;
