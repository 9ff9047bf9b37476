//! Text with nginx variables, parsed once: hash keys, headers, URLs.

use std::fmt;

use super::l7::log::Early;

/// Variables that one text may name. Each is filled in with what a client sent, up to all of its head, and a text
/// of many would make a small request a large one.
pub const VARIABLES_MAX: usize = 64;

/// Text that a request fills in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expression(pub Vec<Part>);

/// A piece of an [`Expression`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text as it is.
    Literal(String),
    /// What the request has for it.
    Variable(Variable),
}

/// An nginx variable that a request decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// `$request_uri`: path and query as sent.
    RequestUri,
    /// `$escaped_request_uri`: the same, fit for a query parameter.
    EscapedRequestUri,
    /// `$uri`: the path, decoded.
    Uri,
    /// `$args`, `$query_string`.
    Args,
    /// `$host`: lower case, without port.
    Host,
    /// `$remote_addr`, `$binary_remote_addr`, `$the_real_ip`: the client.
    RemoteAddr,
    /// `$proxy_add_x_forwarded_for`: what was sent of the way so far, and the client.
    AppendedChain,
    /// `$remote_user`: of basic authentication, whether or not it was verified.
    RemoteUser,
    /// `$scheme`: of the connection.
    Scheme,
    /// `$pass_access_scheme`: as those in front of us have it, if they are believed.
    AccessScheme,
    /// `$best_http_host`: the same of Host.
    BestHost,
    /// `$request_method`.
    RequestMethod,
    /// `$request_id`, `$req_id`.
    RequestId,
    /// `$server_port`, `$pass_server_port`, `$pass_port`.
    ServerPort,
    /// `$ssl_client_verify`; as the next ones where a certificate was asked for.
    SslClientVerify,
    /// `$ssl_client_s_dn`: the name in it.
    SslClientSubject,
    /// `$ssl_client_i_dn`: the name of who issued it.
    SslClientIssuer,
    /// `$ssl_client_escaped_cert`: the certificate as PEM, percent-encoded.
    SslClientCertificate,
    /// `$msec`: seconds since the epoch, with milliseconds.
    Msec,
    /// `$http_NAME`; lower case, words separated by `_`.
    Header(String),
    /// `$arg_NAME`.
    Argument(String),
    /// `$cookie_NAME`.
    Cookie(String),
    /// Another one that the access log knows of a request, by its name.
    Other(String, Early),
}

impl Variable {
    /// It is known before anything is decided about a request.
    pub fn is_told_early(&self) -> bool {
        match self {
            Self::RequestUri
            | Self::EscapedRequestUri
            | Self::Uri
            | Self::Args
            | Self::Host
            | Self::RemoteAddr
            | Self::Scheme
            | Self::AccessScheme
            | Self::BestHost
            | Self::RequestMethod
            | Self::Argument(_)
            | Self::Cookie(_) => true,
            Self::Header(name) => name != "host",
            Self::Other(_, early) => matches!(
                early,
                Early::Namespace | Early::Ingress | Early::Service | Early::LocationPath | Early::IsArgs
            ),
            Self::RemoteUser | Self::ServerPort => true,
            Self::AppendedChain
            | Self::RequestId
            | Self::SslClientVerify
            | Self::SslClientSubject
            | Self::SslClientIssuer
            | Self::SslClientCertificate
            | Self::Msec => false,
        }
    }
}

impl Expression {
    /// Reads text with variables, as `$name` or `${name}`; the error names one that nobody knows.
    pub fn parse(text: &str) -> Result<Self, String> {
        let variables = text.matches('$').count();
        if variables > VARIABLES_MAX {
            return Err(format!("{variables} variables, of which there may be {VARIABLES_MAX}"));
        }
        let mut parts = Vec::new();
        for (literal, name) in pieces(text) {
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            if let Some(name) = name {
                let variable =
                    Variable::named(name).ok_or_else(|| format!("no variable ${name} is known here"))?;
                parts.push(Part::Variable(variable));
            }
        }
        Ok(Self(parts))
    }

    /// Names of all variables in a text that nobody knows, in order.
    pub fn unknown(text: &str) -> Vec<&str> {
        let names = pieces(text).filter_map(|(_, name)| name);
        names.filter(|name| Variable::named(name).is_none()).collect()
    }
}

/// Runs of text, each with the name of the variable behind it.
fn pieces(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let Some((literal, after)) = text.split_once('$') else { return Some((text, None)) };
        let (name, after) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            Some(named) => named,
            None => {
                let is_outside = |c: char| !c.is_ascii_alphanumeric() && c != '_';
                after.split_at(after.find(is_outside).unwrap_or(after.len()))
            }
        };
        rest = Some(after);
        Some((literal, Some(name)))
    })
}

impl fmt::Display for Expression {
    /// As it could have been written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.0 {
            match part {
                Part::Literal(text) => f.write_str(text)?,
                Part::Variable(variable) => write!(f, "${{{}}}", variable.name())?,
            }
        }
        Ok(())
    }
}

impl Variable {
    fn name(&self) -> String {
        match self {
            Self::RequestUri => "request_uri".to_owned(),
            Self::EscapedRequestUri => "escaped_request_uri".to_owned(),
            Self::Uri => "uri".to_owned(),
            Self::Args => "args".to_owned(),
            Self::Host => "host".to_owned(),
            Self::RemoteAddr => "remote_addr".to_owned(),
            Self::AppendedChain => "proxy_add_x_forwarded_for".to_owned(),
            Self::RemoteUser => "remote_user".to_owned(),
            Self::Scheme => "scheme".to_owned(),
            Self::AccessScheme => "pass_access_scheme".to_owned(),
            Self::BestHost => "best_http_host".to_owned(),
            Self::RequestMethod => "request_method".to_owned(),
            Self::RequestId => "request_id".to_owned(),
            Self::ServerPort => "server_port".to_owned(),
            Self::SslClientVerify => "ssl_client_verify".to_owned(),
            Self::SslClientSubject => "ssl_client_s_dn".to_owned(),
            Self::SslClientIssuer => "ssl_client_i_dn".to_owned(),
            Self::SslClientCertificate => "ssl_client_escaped_cert".to_owned(),
            Self::Msec => "msec".to_owned(),
            Self::Header(name) => format!("http_{name}"),
            Self::Argument(name) => format!("arg_{name}"),
            Self::Cookie(name) => format!("cookie_{name}"),
            Self::Other(name, _) => name.clone(),
        }
    }

    /// By its name without `$`.
    pub fn named(name: &str) -> Option<Self> {
        let lower = |rest: &str| rest.to_ascii_lowercase();
        Some(match name {
            "request_uri" => Self::RequestUri,
            "escaped_request_uri" => Self::EscapedRequestUri,
            "uri" | "document_uri" => Self::Uri,
            "args" | "query_string" => Self::Args,
            "host" => Self::Host,
            "remote_addr" | "binary_remote_addr" | "the_real_ip" => Self::RemoteAddr,
            "proxy_add_x_forwarded_for" => Self::AppendedChain,
            "remote_user" => Self::RemoteUser,
            "scheme" => Self::Scheme,
            "pass_access_scheme" => Self::AccessScheme,
            "best_http_host" => Self::BestHost,
            "request_method" => Self::RequestMethod,
            "request_id" | "req_id" => Self::RequestId,
            "server_port" | "pass_server_port" | "pass_port" => Self::ServerPort,
            "ssl_client_verify" => Self::SslClientVerify,
            "ssl_client_s_dn" => Self::SslClientSubject,
            "ssl_client_i_dn" => Self::SslClientIssuer,
            "ssl_client_escaped_cert" => Self::SslClientCertificate,
            "msec" => Self::Msec,
            _ => match name.split_once('_') {
                Some(("http" | "arg" | "cookie", "")) => return None,
                Some(("http", header)) => Self::Header(lower(header)),
                Some(("arg", argument)) => Self::Argument(argument.to_owned()),
                Some(("cookie", cookie)) => Self::Cookie(cookie.to_owned()),
                _ => Self::Other(name.to_owned(), Early::named(name)?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_names_few_variables() {
        assert!(Expression::parse(&"$host".repeat(VARIABLES_MAX)).is_ok());
        assert!(Expression::parse(&"$host".repeat(VARIABLES_MAX + 1)).unwrap_err().contains("65 variables"));
    }

    #[test]
    fn variables_end_where_their_name_does() {
        let literal = |text: &str| Part::Literal(text.to_owned());
        let cases = [
            ("", Ok(vec![])),
            ("plain", Ok(vec![literal("plain")])),
            ("t=${msec}s", Ok(vec![literal("t="), Part::Variable(Variable::Msec), literal("s")])),
            (
                "$scheme://$host",
                Ok(vec![Part::Variable(Variable::Scheme), literal("://"), Part::Variable(Variable::Host)]),
            ),
            ("$http_X_A-b", Ok(vec![Part::Variable(Variable::Header("x_a".to_owned())), literal("-b")])),
            ("$ssl_client_s_dn", Ok(vec![Part::Variable(Variable::SslClientSubject)])),
            ("$proxy_add_x_forwarded_for", Ok(vec![Part::Variable(Variable::AppendedChain)])),
            (
                "$ingress_name",
                Ok(vec![Part::Variable(Variable::Other("ingress_name".to_owned(), Early::Ingress))]),
            ),
            ("$status", Err("no variable $status is known here".to_owned())),
            ("$nobody", Err("no variable $nobody is known here".to_owned())),
            ("cost: 5$", Err("no variable $ is known here".to_owned())),
            ("${host", Err("no variable $ is known here".to_owned())),
        ];
        for (text, expected) in cases {
            let parsed = Expression::parse(text);
            if let Ok(expression) = &parsed {
                assert_eq!(Expression::parse(&expression.to_string()), parsed, "{text}");
            }
            assert_eq!(parsed, expected.map(Expression), "{text}");
        }
    }
}
