//! One inference request, in whatever protocol it came: runs it, tells where its time went, counts how it ended.

use std::time::{Duration, Instant};

use crate::api::answered::Trail;
use crate::api::error::{Code, Problem};
use crate::api::v2::shared_memory;
use crate::api::wire::InferRequest;
use crate::api::{Context, Phases};
use crate::engine::tensor::Tensor;
use crate::service::infer::served::Ticket;
use crate::service::infer::stats::Spent;
use crate::service::infer::{Ask, Timing};
use crate::service::metrics::Outcome;
use crate::service::store::Precision;

/// What a run gave, while its outputs become bytes.
pub(crate) struct Ran {
    /// In the order of the outputs of the model.
    pub(crate) outputs: Vec<Tensor>,
    start: Instant,
    decode: Duration,
    timing: Timing,
    precision: Precision,
    encode_start: Instant,
}

/// Runs a request whose bytes were there at `start`. It waits until `deadline` or its own `timeout`, whichever comes
/// first. Takes the inputs out of the request; those in shared memory are fetched from there, and outputs that are
/// wanted there written.
///
/// # Errors
/// As [`Ticket::infer`]; and what is wrong with shared memory.
pub(crate) async fn run(
    shared: &Context,
    ticket: &mut Ticket,
    request: &mut InferRequest,
    start: Instant,
    deadline: Option<Instant>,
) -> Result<Ran, Problem> {
    shared_memory::fetch(shared, request)?;
    let decode = start.elapsed();
    let own = request.timeout_us.and_then(|us| start.checked_add(Duration::from_micros(us)));
    let ask = Ask {
        precision: request.precision.clone(),
        deadline: own.into_iter().chain(deadline).min(),
        priority: request.priority,
    };
    let answer = ticket.infer(std::mem::take(&mut request.inputs), &ask).await?;
    let encode_start = Instant::now();
    shared_memory::store(shared, request, &ticket.served().outputs, &answer.outputs)?;
    Ok(Ran {
        outputs: answer.outputs,
        start,
        decode,
        timing: answer.timing,
        precision: answer.precision,
        encode_start,
    })
}

impl Ran {
    /// Where the time went, now that the answer is in bytes; noted in the metrics and,
    /// for a trace, in the trail.
    pub(crate) fn spent(&self, ticket: &Ticket, trail: Option<&Trail>) -> Spent {
        let encode = self.encode_start.elapsed();
        ticket.times(self.decode, self.timing.queue, encode);
        if let Some(trail) = trail {
            trail.set_phases(self.phases(ticket, encode));
        }
        Spent { total: self.start.elapsed(), decode: self.decode, run: self.timing, encode }
    }

    fn phases(&self, ticket: &Ticket, encode: Duration) -> Phases {
        let Timing { queue, merge, compute, split, batch_samples, samples } = self.timing;
        let queued = self.start + self.decode;
        // What was measured beside each other need not add up to the last nanosecond.
        let started = (queued + queue).min(self.encode_start);
        Phases {
            version: ticket.served().source.version.0,
            precision: self.precision.as_str(),
            samples,
            batch_samples,
            decode: self.start,
            queue: queued,
            compute: started,
            computed: (started + merge + compute + split).min(self.encode_start),
            encode: self.encode_start,
            encoded: self.encode_start + encode,
        }
    }
}

/// Counts how a request ended; gives its answer.
///
/// # Errors
/// That of `result`.
pub(crate) fn close<T>(
    shared: &Context,
    ticket: Ticket,
    result: Result<(T, Spent), Problem>,
) -> Result<T, Problem> {
    match result {
        Ok((answer, spent)) => {
            ticket.answered((shared.clock)().0, &spent);
            Ok(answer)
        }
        Err(problem) => {
            ticket.refused(outcome(problem.code));
            Err(problem)
        }
    }
}

/// How the metrics call a refusal.
fn outcome(code: Code) -> Outcome {
    match code {
        Code::QueueFull | Code::Overloaded | Code::NotReady => Outcome::Rejected,
        Code::Deadline => Outcome::Deadline,
        Code::Internal | Code::StorageFull | Code::StorageUnavailable => Outcome::Error,
        Code::BadRequest
        | Code::MalformedJson
        | Code::BadInput
        | Code::DigestMismatch
        | Code::Unauthenticated
        | Code::Forbidden
        | Code::RateLimited
        | Code::NoRoute
        | Code::NotFound
        | Code::MethodNotAllowed
        | Code::InUse
        | Code::AlreadyFinished
        | Code::NotFinished
        | Code::RevisionMismatch
        | Code::QuotaExceeded
        | Code::UploadOffset
        | Code::UploadBusy
        | Code::ChecksumMismatch
        | Code::TusVersion
        | Code::TooLarge
        | Code::UnsupportedMedia
        | Code::BadRange
        | Code::BadModel
        | Code::BadData
        | Code::BadRecipe
        | Code::KeyReused
        | Code::NotImplemented => Outcome::Invalid,
    }
}
