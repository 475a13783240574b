//! Who calls: an API key in `Authorization: Bearer`, its account and what it may do.
//!
//! Handlers take one of `Reader`, `Writer` and `Administrator`; there is no other way to an account, so no handler can
//! forget to ask.

use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use telecine_core::access::{self, AccessError, Principal, Scope};
use telecine_domain::id::AccountId;

use crate::problem::{Code, Problem};
use crate::state::ApiState;

macro_rules! caller {
    ($(#[$doc:meta])* $name:ident, $scope:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name(pub(crate) Principal);

        impl $name {
            /// Whose things the call is about.
            pub(crate) fn account(&self) -> AccountId {
                self.0.account
            }
        }

        impl FromRequestParts<ApiState> for $name {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
                authorize(parts, state, $scope).await.map(Self)
            }
        }
    };
}

caller!(/// May read everything but secrets.
    Reader, Scope::Read);
caller!(/// May submit and act on jobs.
    Writer, Scope::Write);
caller!(/// May do everything.
    Administrator, Scope::Admin);

async fn authorize(parts: &Parts, state: &ApiState, scope: Scope) -> Result<Principal, Problem> {
    let token = bearer(parts)?;
    let principal = access::authenticate(&state.backend, token, state.now()).await.map_err(refused)?;
    tracing::debug!(account = %principal.account, key = %principal.key, "authenticated");
    if principal.may(scope) {
        return Ok(principal);
    }
    let needed = scope_name(scope);
    Err(Problem::new(Code::Forbidden, format!("this needs an API key with the scope `{needed}`")))
}

fn bearer(parts: &Parts) -> Result<&str, Problem> {
    let Some(value) = parts.headers.get(AUTHORIZATION) else {
        return Err(Problem::unauthorized("send an API key as `Authorization: Bearer tk_…`"));
    };
    let text = value.to_str().unwrap_or("");
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(Problem::unauthorized("the Authorization header must be `Bearer tk_…`")),
    }
}

fn refused(error: AccessError) -> Problem {
    match error {
        AccessError::Unknown | AccessError::Expired(_) => Problem::unauthorized(error.to_string()),
        AccessError::Invalid(_) | AccessError::NotFound(_) | AccessError::Record(_) => error.into(),
    }
}

/// A scope as it is written.
pub(crate) fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Write => "write",
        Scope::Admin => "admin",
    }
}
