//! Proxies through messages of MPI.

use mpi::point_to_point::send_receive_into;
use mpi::topology::{Process, Rank};
use mpi::traits::*;
use proxystore::codec::Object;
use proxystore::token::TokenBuffer;
use proxystore::{Proxy, Result};

/// Proxies through collectives and messages: 256 bytes each, whatever the object's size.
///
/// A rank that has no token to send sends an empty buffer, so that the others end with an error instead of waiting for it.
pub trait Exchange: Communicator {
    /// The root's proxy in every rank; the others give `None`.
    ///
    /// # Errors
    /// As [`Proxy::to_token_buffer`] on the root, and [`Proxy::from_token_buffer`] elsewhere.
    fn broadcast_proxy<T: Object + ?Sized>(&self, root: Rank, proxy: Option<&Proxy<T>>) -> Result<Proxy<T>> {
        let (mut buffer, written) = buffer(proxy);
        self.process_at_rank(root).broadcast_into(&mut buffer.as_mut_bytes()[..]);
        written?;
        Proxy::from_token_buffer(&buffer)
    }

    /// Every rank's proxy, in the order of ranks.
    ///
    /// # Errors
    /// As [`broadcast_proxy`](Self::broadcast_proxy).
    fn all_gather_proxies<T: Object + ?Sized>(&self, proxy: &Proxy<T>) -> Result<Vec<Proxy<T>>> {
        let (own, written) = buffer(Some(proxy));
        let mut all = vec![0; LEN * self.size() as usize];
        self.all_gather_into(&own.as_bytes()[..], &mut all[..]);
        written?;
        all.chunks_exact(LEN).map(|bytes| Proxy::from_token_buffer(&TokenBuffer::<LEN>::try_from(bytes)?)).collect()
    }

    /// Sends a proxy to one rank and receives one from another.
    ///
    /// # Errors
    /// As [`broadcast_proxy`](Self::broadcast_proxy).
    fn shift_proxy<T: Object + ?Sized>(&self, proxy: &Proxy<T>, to: Rank, from: Rank) -> Result<Proxy<T>> {
        let ((own, written), mut other) = (buffer(Some(proxy)), TokenBuffer::<LEN>::EMPTY);
        let [to, from]: [Process<'_>; 2] = [to, from].map(|rank| self.process_at_rank(rank));
        send_receive_into(&own.as_bytes()[..], &to, &mut other.as_mut_bytes()[..], &from);
        written?;
        Proxy::from_token_buffer(&other)
    }
}

impl<C: Communicator + ?Sized> Exchange for C {}

/// What is sent for a proxy, and why it is nothing.
fn buffer<T: Object + ?Sized>(proxy: Option<&Proxy<T>>) -> (TokenBuffer<LEN>, Result<()>) {
    match proxy.map(Proxy::to_token_buffer).transpose() {
        Ok(buffer) => (buffer.unwrap_or_default(), Ok(())),
        Err(error) => (TokenBuffer::EMPTY, Err(error)),
    }
}

/// Bytes of a message.
const LEN: usize = 256;
