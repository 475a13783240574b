//! Query parameters. Which ones an operation takes is said once, in its `utoipa::path`: `edge` refuses all others
//! before a handler runs, so handlers only read.

use std::convert::Infallible;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::problem::Problem;

/// The query of a request, percent-decoded, in the order given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or("")))
    }
}

impl Params {
    /// Reads `a=1&b=2`.
    pub fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// Name and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of `name`.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.iter().find(|(given, _)| *given == name).map(|(_, value)| value)
    }

    /// The value of `name`, read as `T`.
    ///
    /// # Errors
    /// When there is one and it does not read as a `T`; the message is `T`'s.
    pub fn parsed<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<Option<T>, Problem> {
        let read = |text: &str| {
            text.parse().map_err(|error| Problem::parameter(name, "invalid_value", format!("{error}")))
        };
        self.text(name).map(read).transpose()
    }

    /// The value of `name` as a number from `least` to `most`.
    ///
    /// # Errors
    /// When there is one and it is something else.
    pub fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, Problem> {
        let wrong = |text: &str| {
            let shown: String = text.chars().take(40).collect();
            Problem::parameter(
                name,
                "out_of_range",
                format!("`{shown}` is not a number from {least} to {most}"),
            )
        };
        let read = |text: &str| {
            text.parse().ok().filter(|number| (least..=most).contains(number)).ok_or_else(|| wrong(text))
        };
        self.text(name).map(read).transpose()
    }

    /// Whether `name` is asked for: `true`, `1` or nothing after the name mean yes, `false` and `0` no.
    ///
    /// # Errors
    /// When it is something else.
    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name) {
            Some("true" | "1" | "") => Ok(true),
            Some("false" | "0") | None => Ok(false),
            Some(_) => Err(Problem::parameter(name, "invalid_value", "must be `true` or `false`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_or_refused_by_name() {
        let params = Params::parse("follow&attempt=2&q=a%20b+c&bad=%zz");
        assert!(params.flag("follow").unwrap());
        assert!(!params.flag("other").unwrap());
        assert_eq!(params.number("attempt", 1, 10).unwrap(), Some(2));
        assert_eq!(params.text("q"), Some("a b c"));
        let problem = params.number("q", 1, 10).unwrap_err();
        assert_eq!(problem.errors[0].parameter.as_deref(), Some("q"));
        assert!(params.flag("attempt").is_err());
    }
}
