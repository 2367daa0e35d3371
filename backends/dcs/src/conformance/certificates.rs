//! Certificates on both sides, for every store that has them.

use super::soon;
use crate::{Dcs, DcsError, Deadline, Freshness, MemberData};
use hathi_test_support::certs::Certs;
use std::path::PathBuf;
use std::sync::Arc;

/// The PEM files of a client: whom it believes, and what it shows.
#[derive(Clone)]
pub struct Shown {
    pub cacert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// Servers with these certificates take who shows the right ones, believe nobody else and are believed
/// by nobody who does not know their authority; neither says anything of the lock. A file that is not
/// there is named.
pub async fn both_sides_are_looked_at(certs: &Certs, open: impl Fn(Shown) -> Arc<dyn Dcs>) {
    let (cacert, cert) = (Some(certs.ca.clone()), Some(certs.cert.clone()));
    let whole = Shown { cacert, cert, key: Some(certs.key.clone()) };
    let me = open(whole.clone());
    me.write_member(&MemberData::default(), soon()).await.expect("both are known");
    let view = me.load(Freshness::Latest, soon()).await.expect("both are known");
    assert_eq!(view.members.len(), 1);
    for (what, wrong) in [
        ("an unknown authority", Shown { cacert: None, ..whole.clone() }),
        ("no certificate of ours", Shown { cert: None, key: None, ..whole.clone() }),
    ] {
        let answer = open(wrong).load(Freshness::Latest, Deadline::in_ms(2_500)).await;
        super::assert_unreachable(what, answer);
    }
    let missing = Shown { cacert: Some("/nowhere/ca.pem".into()), ..whole };
    let answer = open(missing).load(Freshness::Latest, soon()).await;
    let Err(DcsError::NotRetriable { why, .. }) = answer else { panic!("{answer:?}") };
    assert!(why.contains("/nowhere/ca.pem"), "{why}");
}
