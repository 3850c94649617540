//! `Transfer`: fills landings from a peer's memory, some stretches at a time.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use margo_sys::{HG_BULK_PULL, HG_SUCCESS, hg_return_t};

use super::{Address, Bulk, Instance, in_callback};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::Landing;
use crate::shm::class::CELL_UNIT;
use crate::sync::lock;

/// A landing, and the peer's memory that fills it.
pub(in super::super) struct Piece {
    pub(in super::super) landing: Landing,
    /// Memory in which the landing lies, where it is registered.
    pub(in super::super) ours: Option<Arc<Bulk>>,
    pub(in super::super) theirs: Arc<Bulk>,
    pub(in super::super) offset: u64,
}

/// A pull of several pieces. It owns the landings until Mercury is done with them, whatever becomes of who asked.
pub(in super::super) struct Transfer {
    instance: Arc<Instance>,
    from: Arc<Address>,
    state: Mutex<State>,
}

struct State {
    pieces: Vec<Registered>,
    /// What is not begun.
    rest: VecDeque<Stretch>,
    in_flight: usize,
    failed: Option<Error>,
    done: Option<Done>,
}

/// In this order: the registration ends before the memory.
struct Registered {
    ours: Arc<Bulk>,
    theirs: Arc<Bulk>,
    landing: Landing,
}

#[derive(Clone, Copy)]
struct Stretch {
    piece: usize,
    their_offset: usize,
    our_offset: usize,
    len: usize,
}

impl Stretch {
    /// Behind it, at the owner.
    fn end(&self) -> usize {
        self.their_offset + self.len
    }

    /// Whether one pull can be of both: the next one follows in the owner's memory as it does in this process's.
    fn is_before(&self, next: &Self, pieces: &[Registered]) -> bool {
        let (first, second) = (&pieces[self.piece], &pieces[next.piece]);
        let ours = second.ours.memory.start;
        let between = if pieces[next.piece - 1].landing.is_whole() { LINE } else { 1 };
        Arc::ptr_eq(&first.theirs, &second.theirs)
            && Arc::ptr_eq(&first.ours, &second.ours)
            // Segments begin with a page.
            && join(
                [self.end(), next.their_offset],
                [ours + self.our_offset + self.len, ours + next.our_offset],
                between,
            )
    }

    /// In pieces of which each is pulled at once.
    fn cut(&self) -> impl Iterator<Item = Self> + use<> {
        let Self { piece, their_offset, our_offset, len } = *self;
        (0..len).step_by(STRETCH).map(move |from| Self {
            piece,
            their_offset: their_offset + from,
            our_offset: our_offset + from,
            len: STRETCH.min(len - from),
        })
    }
}

type Done = Box<dyn FnOnce(Result<Vec<Landing>>) + Send>;

impl Transfer {
    /// Begins with `first` stretches, and with as many as go [at once](Self::go_on) when one of them is over.
    ///
    /// There is no limit in time, and nothing is cancelled that was begun: a read over libfabric that was cancelled and then
    /// fails is reported to nobody (Mercury 2.4, `na_ofi_cq_process_error`), and its memory would be lost. Of a dead peer the
    /// connections are cut.
    ///
    /// `done` gets the landings, full, or what went wrong, once nothing writes to them any more.
    ///
    /// It is called on the progress thread, or from within this call, [`go_on`](Self::go_on) or [`cancel`](Self::cancel).
    pub(in super::super) fn start(
        instance: &Arc<Instance>,
        from: &Arc<Address>,
        pieces: Vec<Piece>,
        first: usize,
        done: impl FnOnce(Result<Vec<Landing>>) + Send + 'static,
    ) -> Arc<Self> {
        let mut state = State {
            pieces: Vec::with_capacity(pieces.len()),
            rest: VecDeque::new(),
            in_flight: 0,
            failed: None,
            done: None,
        };
        state.done = Some(Box::new(done));
        for (i, Piece { landing, ours, theirs, offset }) in pieces.into_iter().enumerate() {
            let registered = ours
                .and_then(|ours| ours.offset_of(&landing.addresses()).map(|at| (Arc::clone(&ours), at)))
                .map_or_else(|| Bulk::of_landing(instance, &landing).map(|bulk| (Arc::new(bulk), 0)), Ok);
            let (ours, at) = match registered {
                Ok(registered) => registered,
                Err(error) => {
                    state.failed = Some(error);
                    break;
                }
            };
            if (offset as usize).checked_add(landing.len()).is_none() {
                state.failed = Some(Error::new(ErrorKind::Corrupt, "request", "a place beyond all memory"));
                break;
            }
            let stretch = Stretch { piece: i, their_offset: offset as usize, our_offset: at, len: landing.len() };
            state.pieces.push(Registered { ours, theirs, landing });
            let pieces = &state.pieces;
            match state.rest.back_mut().filter(|last| last.is_before(&stretch, pieces)) {
                Some(last) => last.len = stretch.end() - last.their_offset,
                None => state.rest.push_back(stretch),
            }
        }
        state.rest = state.rest.iter().flat_map(Stretch::cut).collect();
        let (instance, from) = (Arc::clone(instance), Arc::clone(from));
        let this = Arc::new(Self { instance, from, state: Mutex::new(state) });
        this.pump(first);
        this
    }

    /// Begins as many stretches as go at once.
    pub(in super::super) fn go_on(self: &Arc<Self>) {
        self.pump(AT_ONCE);
    }

    /// Begins no more; what was begun goes on, and owns its memory until it is over.
    pub(in super::super) fn cancel(&self, error: Error) {
        lock(&self.state).failed.get_or_insert(error);
        self.finish();
    }

    /// Begins what is left, as far as no more than so many are on their way.
    fn pump(self: &Arc<Self>, most: usize) {
        loop {
            let mut state = lock(&self.state);
            if state.failed.is_some() || state.in_flight >= most {
                break;
            }
            let Some(stretch) = state.rest.pop_front() else { break };
            state.in_flight += 1;
            self.from.flying.fetch_add(1, SeqCst);
            let piece = &state.pieces[stretch.piece];
            let (ours, theirs) = (piece.ours.raw, piece.theirs.raw);
            drop(state);
            let uargs = Arc::into_raw(Arc::clone(self)).cast_mut().cast::<c_void>();
            let (margo, mid) = (self.instance.margo, self.instance.mid);
            // SAFETY: the stretch lies in memory that is registered, and in landings, or the ends of their cells, that this transfer
            // owns until `in_flight` is 0; handles and address are owned as well; `uargs` is the callback's.
            let outcome = unsafe {
                margo.margo_bulk_ctransfer_timed(
                    mid,
                    HG_BULK_PULL,
                    self.from.raw,
                    theirs,
                    stretch.their_offset,
                    ours,
                    stretch.our_offset,
                    stretch.len,
                    NO_LIMIT,
                    Some(pulled),
                    uargs,
                )
            };
            if outcome != HG_SUCCESS {
                // SAFETY: nothing was begun, so that there is no callback.
                drop(unsafe { Arc::from_raw(uargs.cast_const().cast::<Self>()) });
                self.over(outcome);
            }
        }
        self.finish();
    }

    /// A stretch is over.
    fn over(&self, outcome: hg_return_t) {
        let mut state = lock(&self.state);
        state.in_flight -= 1;
        self.from.flying.fetch_sub(1, SeqCst);
        if outcome != HG_SUCCESS && state.failed.is_none() {
            state.failed = Some(self.instance.failed("request", outcome, &self.from.text));
        }
    }

    /// Ends it when nothing is begun and nothing is left to begin.
    fn finish(&self) {
        let mut state = lock(&self.state);
        if state.in_flight > 0 || (state.failed.is_none() && !state.rest.is_empty()) {
            return;
        }
        let Some(done) = state.done.take() else { return };
        let failed = state.failed.clone();
        let pieces = std::mem::take(&mut state.pieces);
        state.rest.clear();
        drop(state);
        let landings = pieces.into_iter().map(|Registered { ours, theirs, mut landing }| {
            drop((ours, theirs));
            if failed.is_none() {
                // SAFETY: every stretch of it was written, as Mercury said of each.
                unsafe { landing.filled(landing.len()) };
            }
            landing
        });
        let landings: Vec<Landing> = landings.collect();
        done(match failed {
            None => Ok(landings),
            Some(error) => Err(error),
        });
    }
}

/// Whether what ends at the first address here and at the owner, and what begins at the second, can be pulled at once. What lies in between, of
/// fewer than so many bytes, is the rest of a cell at both sides: cells begin at multiples of [`LINE`].
fn join([their_end, their_next]: [usize; 2], [our_end, our_next]: [usize; 2], between: usize) -> bool {
    let gap = our_next.wrapping_sub(our_end);
    let are_cells = our_next % LINE == 0 && their_next % LINE == 0;
    their_next.wrapping_sub(their_end) == gap && (gap == 0 || gap < between && are_cells)
}

/// The end of a stretch.
unsafe extern "C" fn pulled(uargs: *mut c_void, outcome: hg_return_t) {
    // SAFETY: made for this callback, which is called once.
    let transfer = unsafe { Arc::from_raw(uargs.cast_const().cast::<Transfer>()) };
    in_callback(move || {
        transfer.over(outcome);
        transfer.go_on();
    });
}

/// What cells begin at multiples of, in bytes.
const LINE: usize = CELL_UNIT as usize;

/// Margo's word for none.
const NO_LIMIT: f64 = 0.0;

/// Bytes of one pull. A transfer that is given up ends with those that were begun; and libfabric's tcp sends each by one call, in
/// which its thread does nothing else: with 8 MiB 4 MiB took 0.79 of a bare pull's bandwidth, with this 0.96 (`docs/margo.md`).
const STRETCH: usize = 1 << 20;

/// Pulls of one transfer at a time.
pub(in super::super) const AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use super::{LINE, join};

    #[test]
    fn what_lies_alike_is_pulled_at_once() {
        let joins = |theirs, ours| join(theirs, ours, LINE);
        let cells = |gap: usize| [(1 << 20) - gap, 1 << 20];
        assert!(joins([100, 100], [7, 7]) && joins(cells(0), cells(0)));
        assert!(joins(cells(24), cells(24)) && joins(cells(63), cells(63)));
        // Another's bytes lie there, or would be written.
        assert!(!joins(cells(64), cells(64)) && !joins([100, 110], [100, 110]));
        assert!(!joins(cells(24), [100, 124]) && !joins([100, 124], cells(24)));
        assert!(!joins(cells(24), cells(25)) && !joins(cells(0), cells(24)));
        // In the opposite order.
        assert!(!joins([200, 100], [7, 7]) && !joins([100, 100], [7, 3]) && !joins([200, 100], [207, 107]));
        assert!(!joins([64, 0], [128, 64]));
        // Behind a range of a region another range may begin.
        assert!(!join(cells(24), cells(24), 1) && join(cells(0), cells(0), 1));
    }
}
