use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

async fn pair() -> (Link, Link, tempfile::TempDir, Listener) {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = Listener::bind(dir.path()).expect("a listener");
    let (here, there) = tokio::join!(connect(dir.path()), listener.accept());
    (here.expect("reached").expect("somebody is there"), there.expect("answered"), dir, listener)
}

#[tokio::test]
async fn sockets_and_state_arrive_and_the_sockets_are_the_same() {
    let (knocks, answers, ..) = pair().await;
    let addr: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    // More than one message takes.
    let listeners: Vec<_> = (0..link::FDS_MAX + 5).map(|_| TcpListener::bind(addr).expect("bind")).collect();
    let bound: Vec<_> = listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect();
    let sockets: Vec<_> = listeners
        .into_iter()
        .map(|listener| Socket { role: Role::Http(addr), fd: listener.into() })
        .collect();
    // As many bytes as two messages take.
    let document =
        |n| Document { origin: format!("x.yaml#{n}"), since: None, text: "x".repeat(DOCUMENTS / 2) };
    let documents: Vec<_> = (0..4).map(document).collect();
    let expected = documents.clone();
    let state = State { generation: 7, tickets: Secret(vec![1, 2]), ..State::default() };

    let old = tokio::spawn(async move {
        let Ok(Visit::Successor(mut successor)) = hear(answers).await else { panic!("no successor") };
        assert_eq!(successor.unread.as_ref().map(|unread| &*unread.source), Some("/manifests"));
        successor.welcome(&sockets, documents, state).await.expect("sent");
        drop(sockets);
        let mut wishes = vec![successor.wish().await.expect("a wish")];
        successor.gone().await.expect("sent");
        wishes.push(successor.wish().await.expect("a wish"));
        successor.parked(Value::from(3)).await.expect("sent");
        wishes.push(successor.wish().await.expect("a wish"));
        wishes
    });
    let unread = Unread { source: "/manifests".to_owned(), places: vec!["x.yaml".to_owned()] };
    let mut predecessor = Predecessor::meet(knocks, Some(unread)).await.expect("met");

    let received: Vec<_> = std::mem::take(&mut predecessor.sockets)
        .into_iter()
        .map(|socket| TcpListener::from(socket.fd).local_addr().expect("a listener"))
        .collect();
    assert_eq!(received, bound);
    assert!(predecessor.documents == expected);
    assert_eq!((predecessor.state.generation, &predecessor.state.tickets.0[..]), (7, &[1, 2][..]));
    predecessor.let_go().await.expect("let go");
    assert_eq!(predecessor.serving(vec![Role::Http(addr)]).await.expect("parked"), Value::from(3));
    predecessor.settled().await.expect("sent");
    let wishes = old.await.expect("no panic");
    assert_eq!(wishes, [Wish::LetGo, Wish::Serving(vec![Role::Http(addr)]), Wish::Settled]);
}

#[tokio::test]
async fn a_successor_of_another_protocol_is_refused_with_the_reason() {
    let (mut knocks, answers, ..) = pair().await;
    let old = tokio::spawn(hear(answers));

    knocks
        .send(&Message::Hello { version: VERSION + 1, unread: None, streams: true }, &[])
        .await
        .expect("sent");

    let refused = knocks.receive().await.map(|(message, _)| unexpected(message)).expect("an answer");
    assert!(matches!(&refused, Error::Refused(reason) if reason.contains("not 2")), "{refused}");
    assert!(old.await.expect("no panic").is_err());
}

#[tokio::test]
async fn whoever_is_left_is_told_that_the_other_ended() {
    let (knocks, mut answers, ..) = pair().await;

    drop(knocks);

    assert!(matches!(answers.receive().await, Err(Error::Ended)));
}

#[tokio::test]
async fn garbage_is_an_error_and_costs_no_memory() {
    use tokio::io::AsyncWriteExt as _;
    let (mut here, there) = tokio::net::UnixStream::pair().expect("a pair");
    let mut link = Link::new(there).expect("the same user");

    here.write_all(&[0xff; 64]).await.expect("sent");

    assert!(matches!(link.receive().await, Err(Error::Protocol(_))));
}

#[tokio::test]
async fn the_door_is_for_this_user_and_a_second_agent_keeps_its_hands_off() {
    let (_here, _there, dir, listener) = pair().await;
    let path = dir.path().join("takeover.sock");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);

    assert!(matches!(Listener::bind(dir.path()), Err(Error::Occupied { .. })));
    let next = Listener::succeed(dir.path()).expect("the successor's");
    drop(listener);
    assert!(path.exists(), "the predecessor takes its own socket away, not the successor's");
    drop(next);
    assert!(!path.exists());
    assert!(connect(dir.path()).await.expect("no error").is_none());
}

#[tokio::test]
async fn an_agent_that_hangs_is_named() {
    let (mut knocks, _hangs, ..) = pair().await;
    let moment = Duration::from_millis(10);

    let answer = answer_within(moment, 2 * moment, &mut knocks).await;

    let error = answer.expect_err("nothing was said").to_string();
    assert!(error.contains(&format!("`kill -9 {}`", std::process::id())), "{error}");
}
