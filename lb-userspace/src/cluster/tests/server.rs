//! The API server of these tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::DEADLINE;
use crate::cluster::{Access, Cluster};

/// Answers lists with what it has, keeps watches open, and says on them what it is told to.
#[derive(Clone, Default)]
pub(super) struct Server {
    pub(super) shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
pub(super) struct Shared {
    /// By resource.
    pub(super) objects: BTreeMap<String, Vec<Value>>,
    pub(super) watches: BTreeMap<String, mpsc::UnboundedSender<String>>,
    /// Paths and queries in the order they came.
    pub(super) asked: Vec<String>,
    /// Resources that nobody may see.
    pub(super) refused: Vec<String>,
    /// Objects of this name are answered by that alone; lists have them.
    pub(super) unread: BTreeMap<String, (u16, &'static str)>,
    /// Of this resource nobody remembers what came before: so many of the next watches hear that and nothing else.
    pub(super) gone: BTreeMap<String, usize>,
    /// Objects of this name, or lists of this resource, are answered when this opens.
    pub(super) held: Option<(String, watch::Receiver<bool>)>,
}

impl Server {
    pub(super) async fn start(&self) -> Cluster {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let server = Some(format!("http://{}", listener.local_addr().expect("bound")));
        let this = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(this.clone().serve(stream));
            }
        });
        Cluster::connect(&Access { server, ..Access::default() }).await.expect("a client")
    }

    pub(super) fn put(&self, resource: &str, object: Value) {
        self.shared.lock().expect("whole").objects.entry(resource.to_owned()).or_default().push(object);
    }

    /// On the watch of that resource, once there is one.
    pub(super) async fn say(&self, resource: &str, event: Value) {
        let mut event = event.to_string();
        event.push('\n');
        let until = async {
            loop {
                let watch = self.shared.lock().expect("whole").watches.get(resource).cloned();
                if watch.is_some_and(|watch| watch.send(event.clone()).is_ok()) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, until).await.expect("a watch");
    }

    /// How often that was asked.
    pub(super) fn count(&self, words: &[&str]) -> usize {
        let shared = self.shared.lock().expect("whole");
        shared.asked.iter().filter(|asked| words.iter().all(|word| asked.contains(word))).count()
    }

    async fn serve(self, stream: TcpStream) {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        loop {
            let Ok(Some(line)) = lines.next_line().await else { return };
            while lines.next_line().await.is_ok_and(|line| line.is_some_and(|line| !line.is_empty())) {}
            let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            let mut parts = path.rsplit('/');
            let (last, before) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let is_watch = query.contains("watch=true");
            let held = self.shared.lock().expect("whole").held.clone();
            let held = held.filter(|(name, _)| name == last && !is_watch);
            if held.is_some() {
                self.shared.lock().expect("whole").asked.push(target.clone());
            }
            if let Some((_, mut open)) = held {
                let _ = open.wait_for(|open| *open).await;
            }
            let answer = {
                let mut shared = self.shared.lock().expect("whole");
                shared.asked.push(target.clone());
                let known = shared.objects.get(before).map(|objects| (before, objects));
                if shared.refused.iter().any(|refused| refused == last || refused == before) {
                    Err((403, "Forbidden"))
                } else if let Some(answer) = shared.unread.get(last).filter(|_| known.is_some()) {
                    Err(*answer)
                } else if is_watch {
                    let (sender, events) = mpsc::unbounded_channel();
                    let gone = shared.gone.get_mut(last).filter(|left| **left > 0);
                    if gone.map(|left| *left -= 1).is_some() {
                        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                            "reason": "Expired", "message": "too old", "metadata": {}});
                        let event = json!({"type": "ERROR", "object": status});
                        sender.send(format!("{event}\n")).expect("it is heard");
                    }
                    shared.watches.insert(last.to_owned(), sender);
                    Ok(Answer::Watch(events))
                } else if let Some((_, objects)) = known {
                    let found = objects.iter().rev().find(|object| object["metadata"]["name"] == last);
                    found.cloned().map(Answer::Json).ok_or((404, "NotFound"))
                } else {
                    let items = shared.objects.get(last).cloned().unwrap_or_default();
                    let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "7"}, "items": items});
                    Ok(Answer::Json(list))
                }
            };
            let (status, body) = match answer {
                Ok(Answer::Json(value)) => (200, value.to_string()),
                Ok(Answer::Watch(mut events)) => {
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
                    let _ = write.write_all(head.as_bytes()).await;
                    while let Some(event) = events.recv().await {
                        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                        if write.write_all(chunk.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                    return;
                }
                Err((code, reason)) => {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                        "reason": reason, "message": format!("{reason}: {last}"), "metadata": {}});
                    (code, status.to_string())
                }
            };
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            if write.write_all((head + &body).as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

enum Answer {
    Json(Value),
    Watch(mpsc::UnboundedReceiver<String>),
}
