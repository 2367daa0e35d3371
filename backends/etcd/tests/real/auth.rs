//! Passwords: right, wrong, switched on late, tokens that end, roles that change. (DCS-T8, DCS-036)

use crate::harness::{TIMING, backend, client, config, install_tls};
use etcd_client::{Client, PermissionType, RoleRevokePermissionOptions};
use futures::StreamExt;
use hathi_dcs::conformance::{soon, until};
use hathi_dcs::{Change, Dcs, DcsError, Expect, Freshness, Lsn, MemberData, Status};
use hathi_etcd::EtcdConfig;
use hathi_test_support::{Etcd, EtcdOptions, EtcdVersion};
use std::time::Duration;

const TOKEN_TTL: u32 = 2;

/// An etcd that demands a password, with the user `hathi` who may do what a member does.
async fn guarded(version: EtcdVersion) -> (Etcd, EtcdConfig, Client) {
    install_tls();
    let options = EtcdOptions { token_ttl: Some(TOKEN_TTL), ..EtcdOptions::new(version, 1) };
    let etcd = Etcd::start_with(options).await;
    let mut admin = client(&etcd, 0).await;
    admin.user_add("root", "secret", None).await.expect("a user");
    admin.user_grant_role("root", "root").await.expect("a role");
    admin.user_add("hathi", "hathi", None).await.expect("a user");
    admin.role_add("member").await.expect("a role");
    grant(&mut admin).await;
    admin.user_grant_role("hathi", "member").await.expect("a role");
    let config = EtcdConfig {
        username: Some("hathi".into()),
        password: Some("hathi".into()),
        ..config(&etcd)
    };
    (etcd, config, admin)
}

async fn grant(admin: &mut Client) {
    let all = etcd_client::Permission::new(PermissionType::Readwrite, "/service/").with_prefix();
    admin.role_grant_permission("member", all).await.expect("a permission");
}

async fn switch_on(etcd: &Etcd, admin: &mut Client) -> Client {
    admin.auth_enable().await.expect("authentication");
    let user = etcd_client::ConnectOptions::new()
        .with_user("root", "secret")
        .with_auto_token_refresh(true);
    Client::connect(etcd.urls(), Some(user)).await.expect("the root user")
}

fn status(n: u64) -> Status {
    Status { optime: Lsn(n), ..Status::default() }
}

/// Proves DCS-036, DCS-092: everything works, across expired tokens (also the watch's) and across
/// changes of users, which make etcd call every older token's revision old.
async fn a_member_with_a_password_works(version: EtcdVersion) {
    let (etcd, config, mut admin) = guarded(version).await;
    let mut root = switch_on(&etcd, &mut admin).await;
    let a = backend(config.clone(), "a", TIMING);
    let mut wakes = a.watch();
    a.acquire_leader(soon()).await.expect("the right password");
    a.write_member(&MemberData::default(), soon()).await.expect("the right password");
    for n in 1..=2 {
        // Nothing can be asked about a token without prolonging it; this is the wait for its end.
        tokio::time::sleep(Duration::from_millis(u64::from(TOKEN_TTL) * 1000 + 700)).await;
        a.renew_leader(soon()).await.expect("a new token");
        a.write_status(&status(n), soon()).await.expect("a new token");
        assert_eq!(a.load(Freshness::Latest, soon()).await.expect("read").status, status(n));
    }
    root.user_add("other", "x", None).await.expect("a user");
    a.write_status(&status(7), soon()).await.expect("the auth store's new revision");
    a.release_leader(None, soon()).await.expect("mine");
    a.acquire_leader(soon()).await.expect("free");
    let woken = async { while wakes.next().await != Some(Change::Leader) {} };
    tokio::time::timeout(Duration::from_secs(5), woken).await.expect("the watch goes on");
    // The watch itself must log in again, too, when it has to begin anew.
    let b = backend(config, "b", TIMING);
    b.load(Freshness::Latest, soon()).await.expect("read");
    tokio::time::sleep(Duration::from_millis(u64::from(TOKEN_TTL) * 1000 + 700)).await;
    let mut late = b.watch();
    let begun = tokio::time::timeout(Duration::from_secs(5), late.next()).await;
    assert_eq!(begun.expect("a watch after the token's end"), Some(Change::Everything));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_password_works_on_34() {
    a_member_with_a_password_works(EtcdVersion::V34).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_password_works_on_35() {
    a_member_with_a_password_works(EtcdVersion::V35).await;
}

/// Proves DCS-036, DCS-077 (the class): refused, with the reason, at once; and never a word about
/// the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_refused() {
    let (etcd, config, mut admin) = guarded(EtcdVersion::V35).await;
    let mut root = switch_on(&etcd, &mut admin).await;
    let wrong = EtcdConfig { password: Some("nonsense".into()), ..config.clone() };
    let nobody = EtcdConfig { username: Some("nobody".into()), ..config.clone() };
    let none = EtcdConfig { username: None, password: None, ..config.clone() };
    for (what, config) in [("wrong", wrong), ("nobody", nobody), ("none", none)] {
        let a = backend(config, "a", TIMING);
        let began = std::time::Instant::now();
        let answer = a.load(Freshness::Latest, soon()).await;
        assert!(matches!(answer, Err(DcsError::Refused { .. })), "{what}: {answer:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "{what}: asked again and again");
        let lost = a.renew_leader(soon()).await;
        assert!(matches!(lost, Err(DcsError::Refused { .. })), "{what}: {lost:?}");
    }
    // At run time: the password is changed, then given back.
    let a = backend(config, "a", TIMING);
    a.acquire_leader(soon()).await.expect("the right password");
    root.user_change_password("hathi", "other").await.expect("a new password");
    let lost = until("the old token ends", 8_000, || async {
        a.write_status(&status(1), soon()).await.err()
    })
    .await;
    assert!(matches!(lost, DcsError::Refused { .. }), "{lost:?}");
    root.user_change_password("hathi", "hathi").await.expect("the old password");
    a.renew_leader(soon()).await.expect("the right password again");
    a.write_status(&status(2), soon()).await.expect("the right password again");
}

/// Proves DCS-036 for rights taken away and given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_is_refused() {
    let (etcd, config, mut admin) = guarded(EtcdVersion::V35).await;
    let mut root = switch_on(&etcd, &mut admin).await;
    let a = backend(config, "a", TIMING);
    a.acquire_leader(soon()).await.expect("all rights");
    let all = RoleRevokePermissionOptions::new().with_prefix();
    root.role_revoke_permission("member", "/service/", Some(all)).await.expect("revoked");
    let answer = a.load(Freshness::Latest, soon()).await;
    assert!(matches!(answer, Err(DcsError::Refused { .. })), "{answer:?}");
    let answer = a.write_config(&serde_json::Map::new(), Expect::Anything, soon()).await;
    assert!(matches!(answer, Err(DcsError::Refused { .. })), "{answer:?}");
    grant(&mut root).await;
    a.load(Freshness::Latest, soon()).await.expect("all rights");
    a.renew_leader(soon()).await.expect("all rights");
}

/// Proves DCS-T8 (authentication switched on and off at run time).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authentication_may_be_switched_at_run_time() {
    let (etcd, config, mut admin) = guarded(EtcdVersion::V35).await;
    let a = backend(config, "a", TIMING);
    a.acquire_leader(soon()).await.expect("no password is asked for yet");
    let mut root = switch_on(&etcd, &mut admin).await;
    a.write_status(&status(1), soon()).await.expect("logs in");
    a.renew_leader(soon()).await.expect("logs in");
    root.auth_disable().await.expect("off again");
    a.write_status(&status(2), soon()).await.expect("no password is asked for any more");
    a.renew_leader(soon()).await.expect("no password is asked for any more");
}
