//! The bytes of a question. Nobody has to prove that he is an API server, so what is bounded is memory, not senders: nearly
//! all questions are short and are read beside each other, however slowly they come; a long one takes places for all of
//! its bytes, once it has sent as much as a short one has, and gives them back soon.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

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
        let (mut bytes, mut held) = (BytesMut::new(), None::<(OwnedSemaphorePermit, Instant)>);
        loop {
            let frame = match &held {
                None => body.frame().await,
                Some((_, until)) => tokio::select! {
                    frame = body.frame() => frame,
                    () = sleep_until(*until) => {
                        let message = "the question came too slowly".to_owned();
                        return Err((StatusCode::REQUEST_TIMEOUT, message));
                    }
                },
            };
            let data = match frame {
                None => break,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    return Err((StatusCode::BAD_REQUEST, format!("the question broke off: {error}")));
                }
            };
            let length = bytes.len() + data.len();
            if length > MAX_BYTES {
                return Err(too_long());
            }
            if length > SHORT && held.is_none() {
                let places = Arc::clone(&self.0).acquire_many_owned(most.div_ceil(1 << 10) as u32);
                let stopping = |_| (StatusCode::SERVICE_UNAVAILABLE, "stopping".to_owned());
                held = Some((places.await.map_err(stopping)?, Instant::now() + READING));
                // All at once: what grows by doubling takes up to three times as much while it is copied.
                bytes.reserve(most.saturating_sub(bytes.len()));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Question { bytes: bytes.freeze(), places: held.map(|(places, _)| places) })
    }
}

fn too_long() -> Refusal {
    (StatusCode::PAYLOAD_TOO_LARGE, "more than 9 MB".to_owned())
}
