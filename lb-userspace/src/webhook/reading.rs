//! The bytes of a question. Nobody has to prove that he is an API server, so what is bounded is memory, not senders: nearly
//! all questions are short and are read beside each other, however slowly they come; a long one takes places for the
//! bytes that have come, and gives them back soon. Who says that more will come takes none for that.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::MAX_BYTES;

/// Read without a place. A Deployment's Ingress has some kilobytes.
const SHORT: usize = 64 << 10;

/// Kilobytes of long questions that are in memory at once.
const PLACES: u32 = 2 * (MAX_BYTES >> 10) as u32;

/// A long question that is on its way keeps others waiting; the API server sends it in milliseconds.
const READING: Duration = Duration::from_secs(2);

/// Why there is no question.
pub(super) type Refusal = (StatusCode, String);

/// Places for long questions.
pub(super) struct Reading(Arc<Semaphore>);

/// A question and the places it takes.
pub(super) struct Question {
    pub(super) bytes: Bytes,
    pub(super) places: Option<OwnedSemaphorePermit>,
}

impl Reading {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(PLACES as usize)))
    }

    /// The whole of it.
    pub(super) async fn read(&self, mut body: Incoming) -> Result<Question, Refusal> {
        let said = body.size_hint();
        if said.lower() > MAX_BYTES as u64 {
            return Err(too_long());
        }
        let most = said.exact().map_or(MAX_BYTES, |exact| exact as usize).max(SHORT);
        let mut bytes = BytesMut::new();
        let (mut room, mut places, mut until) = (SHORT, None::<OwnedSemaphorePermit>, None::<Instant>);
        while let Some(frame) = by(until, body.frame()).await? {
            let frame = frame
                .map_err(|error| (StatusCode::BAD_REQUEST, format!("the question broke off: {error}")))?;
            let data = frame.into_data().unwrap_or_default();
            let length = bytes.len() + data.len();
            if length > MAX_BYTES {
                return Err(too_long());
            }
            while room < length {
                let more = room.min(most - room).max(length - room);
                let kilobytes = more.div_ceil(1 << 10) as u32;
                // Who waits for places may hold what others wait for.
                let end = *until.get_or_insert_with(|| Instant::now() + READING);
                let taken = by(Some(end), Arc::clone(&self.0).acquire_many_owned(kilobytes)).await?;
                let taken = taken.map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "stopping".to_owned()))?;
                match &mut places {
                    None => places = Some(taken),
                    Some(places) => places.merge(taken),
                }
                room += more;
                bytes.reserve(room - bytes.len());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Question { bytes: bytes.freeze(), places })
    }
}

/// What comes of it by then; `None`: whenever it comes.
async fn by<T>(until: Option<Instant>, coming: impl Future<Output = T>) -> Result<T, Refusal> {
    let Some(until) = until else { return Ok(coming.await) };
    let late = |_| (StatusCode::REQUEST_TIMEOUT, "the question came too slowly".to_owned());
    timeout_at(until, coming).await.map_err(late)
}

fn too_long() -> Refusal {
    (StatusCode::PAYLOAD_TOO_LARGE, "more than 9 MB".to_owned())
}
