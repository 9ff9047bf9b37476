//! The pages of `docs` that are made from the tables of the translation and of the command line. `PENSTOCK_UPDATE=1 cargo test
//! -p lb-tests --lib` writes them anew.

use std::fmt::Write;

use penstock::cli::flags::{self, Flag};
use penstock::translate::{self, Annotation, Fate, KeyStatus, Status, TABLE};

#[test]
fn the_page_of_annotations_is_what_the_table_says() {
    compare("annotations.md", &annotations());
}

#[test]
fn the_page_of_the_config_map_is_what_the_table_says() {
    compare("configmap.md", &config_map());
}

#[test]
fn the_page_of_flags_is_what_the_tables_say() {
    compare("flags.md", &command_line());
}

fn compare(name: &str, actual: &str) {
    let path = crate::workspace().join("docs").join(name);
    if std::env::var_os("PENSTOCK_UPDATE").is_some() {
        std::fs::write(&path, actual).expect("the page is writable");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == actual,
        "docs/{name} is stale; PENSTOCK_UPDATE=1 cargo test -p lb-tests --lib writes it"
    );
}

fn annotations() -> String {
    let mut out = String::from(
        "# Annotations\n\nEach is written with the prefix `nginx.ingress.kubernetes.io/`, or that of `--annotations-prefix`; those of ours (`penstock.dev/`): [Services](services.md#annotations). *Scope* is what it changes: the paths of its\n\
         Ingress, its hosts as a whole, or every route to its Service. *Risk* is what `annotations-risk-level` goes by. A bad value\n\
         is *refused* (this version of the Ingress does not enter, the last one goes on), *closes* (its paths answer 503), *closes hosts* (they answer 403), or the\n\
         *default* is used. A word counts as it is written (`Off` is not `off`) but with `backend-protocol` and `session-cookie-samesite`; bools and numbers\n\
         have no blanks around them.\n\n\
         | annotation | value | scope | risk | bad value | status | what it is |\n|---|---|---|---|---|---|---|\n",
    );
    for row in TABLE {
        let Annotation { name, value, risk, scope, bad_value, status, doc } = row;
        let bad_value = match format!("{bad_value:?}").as_str() {
            "Refuse" => "refused",
            "Deny" => "closes",
            "Close" => "closes hosts",
            _ => "default",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| `{name}` | {value} | {} | {} | {bad_value} | {} | {doc} |",
            format!("{scope:?}").to_lowercase(),
            format!("{risk:?}").to_lowercase(),
            annotation_status(*status)
        );
    }
    out
}

fn annotation_status(status: Status) -> String {
    match status {
        Status::Honoured => "honoured".to_owned(),
        Status::With(other) => format!("as `{other}`"),
        Status::Refused => "refused: its paths answer 503".to_owned(),
        Status::NoEffect => "no effect".to_owned(),
    }
}

fn config_map() -> String {
    let mut out = String::from(
        "# ConfigMap\n\nKeys of the controller's ConfigMap: the one that `--configmap` names, else the first by namespace that is called\n\
         `ingress-nginx-controller`. A value that cannot be read is reported and the default is used; so are keys that do not exist. Defaults are those of ingress-nginx.\n\n\
         | key | value | default | status | what it is |\n|---|---|---|---|---|\n",
    );
    for (row, status) in translate::key_statuses() {
        let default = if row.default.is_empty() { String::new() } else { format!("`{}`", row.default) };
        let doc = match row.fate {
            Fate::Removed(instead) => instead,
            _ => row.doc,
        };
        let _ =
            writeln!(out, "| `{}` | {} | {default} | {} | {doc} |", row.name, row.form, key_status(status));
    }
    out
}

fn key_status(status: KeyStatus) -> &'static str {
    match status {
        KeyStatus::Honoured => "honoured",
        KeyStatus::NotYet => "not yet",
        KeyStatus::NoEffect => "no effect",
        KeyStatus::Refused => "refused: every Ingress answers 503",
        KeyStatus::Removed => "no more",
    }
}

fn command_line() -> String {
    let mut out = String::from(
        "# Flags of `penstock run`\n\nEach that has an effect may stand in the [file of `--config`](operations.md#flags), and has an environment variable, as `PENSTOCK_HTTP_PORT`; `--takeover` has none.\n\n\
         ## Those of ingress-nginx\n\nAll are accepted, so the arguments of its Deployment start Penstock, too (where the first is the name of its binary and none speaks of `--datapath`,\n\
         `--interface` or `--announce`, without the kernel part, which its pods have no right to); what one without meaning here would have done is\n\
         said in the log at the start. A switch may stand alone or with `=true` or `=false`.\n\n\
         | flag | value | status | what it is |\n|---|---|---|---|\n",
    );
    for Flag { name, takes, fate } in flags::TABLE {
        let (status, doc) = match fate {
            flags::Fate::Honoured => ("honoured", flags::help(name).unwrap_or_default()),
            flags::Fate::Idle(instead) => ("no effect", (*instead).to_owned()),
        };
        let value = format!("{takes:?}").to_lowercase();
        let _ = writeln!(out, "| `--{name}` | {value} | {status} | {} |", cell(&doc));
    }
    out.push_str("\n## Others\n\n| flag | what it is |\n|---|---|\n");
    let others = flags::shown();
    for (name, doc) in others.iter().filter(|(name, _)| flags::TABLE.iter().all(|flag| flag.name != name)) {
        let _ = writeln!(out, "| `--{name}` | {} |", cell(doc));
    }
    out
}

/// In one line, and without what ends a cell.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
