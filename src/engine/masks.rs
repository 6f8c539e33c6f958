//! Masks of grammars, computed beside the forward pass: while the engine thread runs a step, one more thread finds out
//! what the step's sequences may sample.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use crate::grammar::Constraint;

/// Constraints on their way to the thread and back, each with its sequence's place in the step.
pub(super) type Batch = Vec<(usize, Box<Constraint>)>;

/// llguidance recurses along the structure of lexemes.
const STACK_BYTES: usize = 16 << 20;

/// The thread; started by the first batch.
#[derive(Default)]
pub(super) struct MaskThread {
    channels: Option<(mpsc::Sender<Batch>, mpsc::Receiver<Batch>)>,
}

/// A batch whose masks are being computed.
pub(super) enum Masks {
    /// Nothing was to be done, or there is no thread: whoever needs a mask computes it.
    Here(Batch),
    Away,
}

impl MaskThread {
    /// Lets the thread compute what each constraint of the batch allows next.
    pub(super) fn begin(&mut self, batch: Batch) -> Masks {
        if batch.is_empty() {
            return Masks::Here(batch);
        }
        if self.channels.is_none() {
            self.channels = start();
        }
        match &self.channels {
            None => Masks::Here(batch),
            Some((jobs, _)) => match jobs.send(batch) {
                Ok(()) => Masks::Away,
                Err(refused) => Masks::Here(refused.0),
            },
        }
    }

    /// Waits for a batch that was begun. What the thread could not give back is missing: its sequences fail.
    pub(super) fn end(&mut self, masks: Masks) -> Batch {
        match (masks, &self.channels) {
            (Masks::Here(batch), _) => batch,
            (Masks::Away, Some((_, done))) => done.recv().unwrap_or_else(|_| {
                // It ended by a panic outside of all grammars: another one is started for the next batch.
                self.channels = None;
                Batch::new()
            }),
            (Masks::Away, None) => Batch::new(),
        }
    }
}

fn start() -> Option<(mpsc::Sender<Batch>, mpsc::Receiver<Batch>)> {
    let (jobs, batches) = mpsc::channel::<Batch>();
    let (finished, done) = mpsc::channel();
    let work = move || {
        for mut batch in batches {
            // An error is found again by whoever samples; a constraint that panics is lost, and its sequence with it.
            batch.retain_mut(|(_, constraint)| {
                catch_unwind(AssertUnwindSafe(|| constraint.allowed().map(drop).ok())).is_ok()
            });
            if finished.send(batch).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("wick-masks".to_owned()).stack_size(STACK_BYTES).spawn(work);
    if let Err(error) = &thread {
        tracing::warn!(%error, "no thread for the masks of grammars: they are computed between steps");
    }
    thread.ok().map(|_| (jobs, done))
}
