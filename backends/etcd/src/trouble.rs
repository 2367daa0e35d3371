//! What an error of the client means for the call that met it. (section 2 of docs/spec/dcs.md)

use etcd_client::Error;
use std::error::Error as _;

/// What to do about an answer that was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Ask another endpoint. (DCS-030, DCS-031, DCS-032)
    OtherEndpoint,
    /// Ask the same one again, later. (DCS-033)
    Later,
    /// Log in again and ask again. (DCS-036)
    Login,
    /// The server knows no passwords: connect without, and ask again.
    NoLogin,
    /// The lease is not there (any more). (DCS-035)
    LeaseGone,
    /// Wrong name or password. (DCS-036)
    Refused,
    /// Asking again will not help soon, and it says nothing about the lock. (DCS-034)
    Hopeless,
    /// The request itself is wrong.
    Wrong,
}

/// gRPC's numbers for its status codes.
mod code {
    pub const CANCELLED: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const DEADLINE_EXCEEDED: i32 = 4;
    pub const NOT_FOUND: i32 = 5;
    pub const PERMISSION_DENIED: i32 = 7;
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    pub const FAILED_PRECONDITION: i32 = 9;
    pub const INTERNAL: i32 = 13;
    pub const UNAVAILABLE: i32 = 14;
    pub const UNAUTHENTICATED: i32 = 16;
}

pub(crate) fn classify(error: &Error) -> Trouble {
    match error {
        Error::GRpcStatus(status) => by_status(status.code().into(), status.message()),
        Error::LeaseKeepAliveError(_) => Trouble::LeaseGone,
        Error::IoError(_)
        | Error::TransportError(_)
        | Error::WatchError(_)
        | Error::EndpointError(_)
        | Error::Internal(_) => Trouble::OtherEndpoint,
        Error::InvalidArgs(_)
        | Error::InvalidUri(_)
        | Error::Utf8Error(_)
        | Error::ElectError(_)
        | Error::InvalidMetadataValue(_)
        | Error::EndpointsNotManaged => Trouble::Wrong,
    }
}

/// etcd says several things with one code, so its texts must be looked at here, and only here.
pub(crate) fn by_status(status: i32, text: &str) -> Trouble {
    if text.contains("invalid auth token") {
        return Trouble::Login;
    }
    match status {
        code::UNAVAILABLE
        | code::CANCELLED
        | code::DEADLINE_EXCEEDED
        | code::UNKNOWN
        | code::INTERNAL => Trouble::OtherEndpoint,
        code::UNAUTHENTICATED | code::PERMISSION_DENIED => Trouble::Login,
        code::INVALID_ARGUMENT if text.contains("user name is empty") => Trouble::Login,
        code::INVALID_ARGUMENT if text.contains("auth store is old") => Trouble::Login,
        code::INVALID_ARGUMENT if text.contains("authentication failed") => Trouble::Refused,
        code::INVALID_ARGUMENT if text.contains("user name not found") => Trouble::Refused,
        code::INVALID_ARGUMENT => Trouble::Wrong,
        code::NOT_FOUND if text.contains("lease not found") => Trouble::LeaseGone,
        code::FAILED_PRECONDITION if text.contains("authentication is not enabled") => {
            Trouble::NoLogin
        }
        code::FAILED_PRECONDITION => Trouble::Later,
        code::RESOURCE_EXHAUSTED if text.contains("too many requests") => Trouble::Later,
        code::RESOURCE_EXHAUSTED if text.contains("too large") => Trouble::Wrong,
        _ => Trouble::Hopeless,
    }
}

/// The error and everything beneath it: the outermost text alone is often "service error".
pub(crate) fn whole_text(error: &Error) -> String {
    let mut text = match error {
        Error::GRpcStatus(status) => format!("{:?}: {}", status.code(), status.message()),
        other => other.to_string(),
    };
    let mut source = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(transport) => transport.source(),
        other => other.source(),
    };
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

/// No byte of the request can have reached the server.
pub(crate) fn never_sent(text: &str) -> bool {
    text.contains("tcp connect error") || text.contains("Connection refused")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-031, DCS-032, DCS-033, DCS-034, DCS-035 and DCS-036: no error of etcd's ever becomes a word about the lock.
    #[test]
    fn each_status_has_one_answer() {
        for (status, text, expected) in [
            (14, "etcdserver: no leader", Trouble::OtherEndpoint),
            (14, "etcdserver: request timed out", Trouble::OtherEndpoint),
            (2, "not a primary lessor", Trouble::OtherEndpoint),
            (2, "etcdserver: invalid auth token", Trouble::Login),
            (4, "context deadline exceeded", Trouble::OtherEndpoint),
            (9, "etcdserver: not capable", Trouble::Later),
            (9, "etcdserver: authentication is not enabled", Trouble::NoLogin),
            (5, "etcdserver: requested lease not found", Trouble::LeaseGone),
            (16, "etcdserver: invalid auth token", Trouble::Login),
            (3, "etcdserver: user name is empty", Trouble::Login),
            (3, "etcdserver: revision of auth store is old", Trouble::Login),
            (7, "etcdserver: permission denied", Trouble::Login),
            (3, "etcdserver: authentication failed, invalid user ID or password", Trouble::Refused),
            (3, "etcdserver: request is too large", Trouble::Wrong),
            (8, "etcdserver: mvcc: database space exceeded", Trouble::Hopeless),
            (8, "etcdserver: too many requests", Trouble::Later),
            (15, "etcdserver: corrupt cluster", Trouble::Hopeless),
        ] {
            assert_eq!(by_status(status, text), expected, "{status} {text}");
        }
    }
}
