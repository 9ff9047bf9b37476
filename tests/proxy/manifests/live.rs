//! Keys of the controller's ConfigMap, put in place while the agent serves: each shows by its next answer, and the one
//! that was asked before all of them is answered at the end.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::answer::ask;
use super::case::{Case, Ingress, Theme, Variant};
use super::client::{Client, LONG};
use super::stage::{Stage, configuration};

/// How long a key that is not set gets to show.
const BEFORE: Duration = Duration::from_millis(1500);

/// How long one that is set gets: several attempts, some of which may have begun before it was in force.
const AFTER: Duration = Duration::from_secs(30);

impl Theme {
    /// Sets the keys of one case after those of another.
    pub fn prove_live(&self) {
        let variants: Vec<Variant> = self.variants().into_iter().filter(|it| it.without.is_none()).collect();
        let case = Case { ingress: Ingress::default(), also: Vec::new(), ..variants[0].case.clone() };
        let early = Variant { id: "early".to_owned(), case, without: None };
        let all = [&variants[..], std::slice::from_ref(&early)].concat();
        let stage = Stage::start(&all, &BTreeMap::new(), &self.flags);
        let process = stage.agents.pid();
        let mut early = held(&stage, &early.host());

        let failures: Vec<String> = variants.iter().filter_map(|variant| stage.set(variant).err()).collect();

        assert!(failures.is_empty(), "{} failed:\n\n{}", failures.len(), failures.join("\n\n"));
        stage.props.records.release();
        let reply = ask(&mut early, b"", false).expect("an answer to the first request");
        assert_eq!((reply.status, stage.agents.pid()), (200, process));
    }
}

/// A request that is answered when all is over.
fn held(stage: &Stage, host: &str) -> TcpStream {
    let mut early = TcpStream::connect(stage.agents.http).expect("connect");
    write!(early, "GET /held HTTP/1.1\r\nHost: {host}\r\nReply-Late: 1\r\n\r\n").expect("send");
    let is_there = || stage.props.records.any(|request| request.starts_with("GET /held ")).then_some(());
    lb_tests::agent::eventually(LONG, is_there).expect("held");
    early
}

impl Stage {
    fn set(&self, variant: &Variant) -> Result<(), String> {
        let client = |patience| Client::new(self, variant.host(), patience);
        let case = &variant.case;
        self.agents.write("config.yaml", &configuration(&BTreeMap::new()));
        // The key of the case before may not have ended yet.
        let fails = || client(BEFORE).take(&case.ask).is_err().then_some(());
        if lb_tests::agent::eventually(BEFORE, fails).is_none() {
            return Err(format!("{}\nis so without the key, too", case.case));
        }
        let filled =
            case.config.iter().map(|(key, value)| (key.clone(), self.fill_in(value, &variant.host())));
        self.agents.write("config.yaml", &configuration(&filled.collect()));

        let started = Instant::now();
        loop {
            let outcome = client(Duration::from_secs(5)).take(&case.ask);
            let Err(wrong) = outcome else { return Ok(()) };
            if started.elapsed() > AFTER {
                return Err(format!("{}\n{wrong}", case.case));
            }
        }
    }
}
