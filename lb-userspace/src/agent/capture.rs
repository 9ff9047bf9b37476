//! Carries what the datapath shows to who asked for it, until one of them has enough.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};

use crate::admin::{Piece, Stream};
use crate::capture::{Format, Question, Writer, summary};
use crate::datapath::capture::Capture;

/// Pieces that wait for a slow reader; what comes beyond them waits in the kernel's buffer, and is
/// lost and counted there.
const WAITING: usize = 16;

/// Longest capture without `seconds`: the agent outlives who forgets one.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Runs a capture in a task of its own. It ends when enough is shown, the time is over, `stop` is
/// told so, or the stream is dropped.
pub(super) fn run(mut capture: Capture, question: Question, mut stop: oneshot::Receiver<()>) -> Stream {
    let (send, pieces) = mpsc::channel(WAITING);
    let content_type = match question.format {
        Format::Text => "text/plain; charset=utf-8",
        Format::Pcapng => "application/x-pcapng",
    };
    tokio::spawn(async move {
        let (mut writer, head) = Writer::new(question.format, question.filter.snap);
        if send.send(Piece::Bytes(head.into())).await.is_err() {
            return;
        }
        let over = tokio::time::sleep(question.time.unwrap_or(LONGEST));
        tokio::pin!(over);
        let most = question.count.unwrap_or(u64::MAX);
        let mut shown = 0u64;
        while shown < most {
            let packets = tokio::select! {
                packets = capture.next() => packets,
                () = send.closed() => return,
                _ = &mut stop => break,
                () = &mut over => break,
            };
            let mut out = Vec::new();
            for packet in packets.iter().take(usize::try_from(most - shown).unwrap_or(usize::MAX)) {
                writer.packet(&mut out, packet);
                shown += 1;
            }
            if send.send(Piece::Bytes(out.into())).await.is_err() {
                return;
            }
        }
        let tally = capture.tally();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Who has gone meanwhile misses nothing.
        let _ = send.send(Piece::Bytes(writer.end(now, tally).into())).await;
        let _ = send.send(Piece::Summary(summary(shown, tally))).await;
    });
    Stream { content_type, pieces }
}
