//! `Flat` for Kubernetes: reading everything, and the requests that the rest is made of.

use crate::KubernetesConfig;
use crate::layout::{self, Changes, Place};
use crate::objects::{Kind, Object, Sent, SentList, version};
use crate::pod::Labels;
use crate::seen::{Seen, Side};
use crate::servers::{Answer, Call, Servers, call};
use async_trait::async_trait;
use hathi_dcs::flat::copy::view_of;
use hathi_dcs::flat::{Ended, Flat, Handle, Kept, READ_AGAIN, Wake};
use hathi_dcs::{ClusterView, DcsError, Deadline, MemberName, Scope, Timing, boottime};
use http::Request;
use kube::core::params::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::request::Request as Requests;
use serde_json::{Map, Value, json};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// What the calls and the watch have in common.
pub struct Shared {
    pub(crate) config: KubernetesConfig,
    pub(crate) me: MemberName,
    pub(crate) servers: Servers,
    pub(crate) seen: Seen,
    pub(crate) kept: Kept<()>,
    timing: Mutex<Timing>,
    /// `k=v,k=v`, for lists and watches. (DCS-150)
    pub(crate) selector: String,
    scope: String,
    /// Names the calls of this process that begin a bootstrap.
    pub(crate) mark: String,
    /// Something was seen; the watch need not wait for its event.
    pub(crate) stirred: Notify,
    /// The rights were asked for.
    pub(crate) rights_known: AtomicBool,
    /// The headless Service was made, or cannot be. (DCS-152)
    pub(crate) service_done: AtomicBool,
}

/// One cluster's objects in Kubernetes, as seen by one member, whose name is that of its Pod.
pub type Kubernetes = Handle<Shared>;

/// Touches neither the network nor a file: the first use does. What cannot be right is then
/// `NotRetriable`, a missing right `Refused`, each with one line that says what to do.
pub fn open(
    config: KubernetesConfig,
    scope: Scope,
    me: MemberName,
    timing: Timing,
) -> Arc<Kubernetes> {
    let base = layout::base(scope.scope());
    let mut labels: Vec<String> =
        config.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    labels.push(format!("{}={}", config.scope_label, scope.scope()));
    let servers = Servers::new(config.clone());
    servers.set_loop_wait(timing.loop_wait_ms());
    Handle::new(Arc::new(Shared {
        seen: Seen::new(&base, config.use_endpoints),
        selector: labels.join(","),
        scope: scope.scope().to_owned(),
        mark: format!("{me}.{}.{}", std::process::id(), boottime().0),
        kept: Kept::new(&me),
        me,
        servers,
        timing: Mutex::new(timing),
        stirred: Notify::new(),
        rights_known: AtomicBool::new(false),
        service_done: AtomicBool::new(!config.use_endpoints),
        config,
    }))
}

/// What a write came to.
pub(crate) enum Done {
    Written(Object),
    /// Another version stands there, or something stands where nothing should.
    Conflict {
        repeated: bool,
    },
    Absent {
        repeated: bool,
    },
}

/// What a patch may take for granted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Over {
    Anything,
    Version(u64),
}

impl Shared {
    pub(crate) fn timing(&self) -> Timing {
        *self.timing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn objects(&self) -> Kind {
        if self.config.use_endpoints { Kind::Endpoints } else { Kind::ConfigMaps }
    }

    pub(crate) fn requests(&self, resource: &str) -> Requests {
        Requests::new(format!("/api/v1/namespaces/{}/{resource}", self.config.namespace))
    }

    pub(crate) fn hopeless(&self, why: impl ToString) -> DcsError {
        DcsError::NotRetriable { store: self.servers.store(), why: why.to_string() }
    }

    pub(crate) fn made(
        &self,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Request<Vec<u8>>, DcsError> {
        request.map_err(|why| self.hopeless(why))
    }

    /// The cluster's labels. (DCS-150)
    fn labels(&self) -> Map<String, Value> {
        let each = self.config.labels.iter();
        let mut labels: Map<String, Value> =
            each.map(|(label, value)| (label.clone(), json!(value))).collect();
        labels.insert(self.config.scope_label.clone(), json!(self.scope));
        labels
    }

    fn side(kind: Kind) -> Side {
        match kind {
            Kind::Pods => Side::Pods,
            Kind::Endpoints | Kind::ConfigMaps => Side::Objects,
        }
    }

    /// Takes an answer in.
    fn took(&self, kind: Kind, body: &[u8]) -> Result<Object, DcsError> {
        let sent = serde_json::from_slice::<Sent>(body).map_err(|why| self.strange(why))?;
        let (name, object) = Object::of(sent).map_err(|why| self.strange(why))?;
        self.seen.put(Self::side(kind), name, object.version, Some(object.clone()));
        self.publish();
        Ok(object)
    }

    pub(crate) fn publish(&self) {
        self.seen.publish(&self.kept, self.timing().ttl);
        self.stirred.notify_one();
    }

    /// An answer that is none of an API server; what was asked may have been done.
    fn strange(&self, why: impl ToString) -> DcsError {
        DcsError::unreachable(self.servers.store(), 0, why)
    }

    fn written(&self, kind: Kind, answer: &Answer) -> Result<Done, DcsError> {
        let repeated = answer.repeated;
        match answer.status {
            404 => Ok(Done::Absent { repeated }),
            409 => Ok(Done::Conflict { repeated }),
            _ => Ok(Done::Written(self.took(kind, &answer.body)?)),
        }
    }

    /// One object as of now. (DCS-305)
    pub(crate) async fn get(
        &self,
        place: Place,
        patient: bool,
        by: Deadline,
    ) -> Result<Option<Object>, DcsError> {
        let kind = self.objects();
        let name = self.seen.name(place);
        let request = self.made(self.requests(kind.resource()).get(name, &GetParams::default()))?;
        let call = Call { patient, ..call("get", kind, request) };
        let began = self.seen.newest(Side::Objects);
        let answer = self.servers.call(by, &call).await?;
        if answer.status == 404 {
            self.seen.absent(Side::Objects, name, began);
            self.publish();
            return Ok(None);
        }
        self.took(kind, &answer.body).map(Some)
    }

    fn metadata(&self, name: &str, changes: &Changes) -> Value {
        let annotations: Map<String, Value> =
            changes.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({
            "namespace": self.config.namespace,
            "name": name,
            "labels": self.labels(),
            "annotations": annotations,
        })
    }

    /// Changes annotations of an object that is there. (DCS-151)
    ///
    /// A plain merge, not the strategic one that Patroni sends: that writes an empty text for what it
    /// should remove when the object has no annotations at all (seen on 1.20).
    pub(crate) async fn patch(
        &self,
        place: Place,
        changes: &Changes,
        subsets: Option<Value>,
        over: Over,
        patient: bool,
        by: Deadline,
    ) -> Result<Done, DcsError> {
        let kind = self.objects();
        let name = self.seen.name(place);
        let mut metadata = self.metadata(name, changes);
        if let Over::Version(version) = over {
            metadata["resourceVersion"] = json!(version.to_string());
        }
        let mut body = json!({"metadata": metadata});
        if let Some(subsets) = subsets {
            body["subsets"] = subsets;
        }
        let params = PatchParams::default();
        let requests = self.requests(kind.resource());
        let request = self.made(requests.patch(name, &params, &Patch::Merge(body)))?;
        let call = Call { patient, ..call("patch", kind, request) };
        let answer = self.servers.call(by, &call).await?;
        self.written(kind, &answer)
    }

    /// Makes an object that is not there. (DCS-151)
    pub(crate) async fn create(
        &self,
        place: Place,
        changes: &Changes,
        subsets: Option<Value>,
        patient: bool,
        by: Deadline,
    ) -> Result<Done, DcsError> {
        let kind = self.objects();
        let there = changes.iter().filter(|(_, value)| value.is_some()).cloned().collect();
        let mut body = json!({"metadata": self.metadata(self.seen.name(place), &there)});
        if let Some(subsets) = subsets {
            body["subsets"] = subsets;
        }
        let requests = self.requests(kind.resource());
        let body = body.to_string().into_bytes();
        let request = self.made(requests.create(&PostParams::default(), body))?;
        let call = Call { patient, ..call("create", kind, request) };
        let answer = self.servers.call(by, &call).await?;
        self.written(kind, &answer)
    }

    /// Labels and record of a Pod, in one patch. (DCS-155)
    pub(crate) async fn patch_pod(
        &self,
        name: &str,
        labels: &Labels,
        status: Option<&str>,
        by: Deadline,
    ) -> Result<Done, DcsError> {
        let body = json!({"metadata": {
            "namespace": self.config.namespace,
            "name": name,
            "labels": labels,
            "annotations": {"status": status},
        }});
        let params = PatchParams::default();
        let requests = self.requests("pods");
        let request = self.made(requests.patch(name, &params, &Patch::Merge(body)))?;
        let answer = self.servers.call(by, &call("patch", Kind::Pods, request)).await?;
        self.written(Kind::Pods, &answer)
    }

    /// The headless Service that keeps the control plane from deleting the Endpoints. Nice to have:
    /// who may not make it, has one made by hand. (DCS-152)
    pub(crate) async fn create_service(&self, by: Deadline) -> Result<(), DcsError> {
        let body = json!({
            "metadata": {
                "namespace": self.config.namespace,
                "name": self.seen.name(Place::Config),
                "labels": self.labels(),
            },
            "spec": {"clusterIP": "None"},
        });
        let requests = self.requests("services");
        let body = body.to_string().into_bytes();
        let request = self.made(requests.create(&PostParams::default(), body))?;
        let call = Call { verb: "create", kind: "services", request, patient: false };
        self.servers.call(by, &call).await.map(drop)
    }

    /// Takes all objects of one kind in, and says of which version that is.
    pub(crate) async fn list(&self, kind: Kind, by: Deadline) -> Result<u64, DcsError> {
        let side = Self::side(kind);
        let began = self.seen.newest(side);
        // Without a version: as of now, agreed by the store's majority.
        let params = ListParams::default().labels(&self.selector);
        let request = self.made(self.requests(kind.resource()).list(&params))?;
        let answer = self.servers.call(by, &call("list", kind, request)).await?;
        if answer.status != 200 {
            return Err(self.hopeless(format!(
                "namespace {:?} has no {}",
                self.config.namespace,
                kind.resource()
            )));
        }
        let list = serde_json::from_slice::<SentList>(&answer.body);
        let list = list.map_err(|why| self.strange(why))?;
        let of = version(list.metadata.resource_version.as_deref());
        let of = of.map_err(|why| self.strange(why))?;
        let items = list.items.unwrap_or_default();
        self.seen.took(side, of, began, items).map_err(|why| self.strange(why))?;
        Ok(of)
    }

    /// Both lists. The objects first: who reads that the lock is free reads afterwards what was
    /// written before that.
    pub(crate) async fn list_all(&self, by: Deadline) -> Result<(u64, u64), DcsError> {
        let pods = self.list(Kind::Pods, by);
        let both = tokio::try_join!(self.list(self.objects(), by), pods)?;
        self.publish();
        Ok(both)
    }

    /// Everything with the cluster's labels.
    pub(crate) async fn delete_objects(&self, by: Deadline) -> Result<(), DcsError> {
        let kind = self.objects();
        let params = ListParams::default().labels(&self.selector);
        let requests = self.requests(kind.resource());
        let request = self.made(requests.delete_collection(&DeleteParams::default(), &params))?;
        self.servers.call(by, &call("deletecollection", kind, request)).await.map(drop)
    }

    /// I wrote, or may have written: what is remembered counts again when everything was read.
    pub(crate) fn wrote_something(&self) {
        self.kept.wrote(READ_AGAIN);
    }
}

#[async_trait]
impl Flat for Shared {
    type Lease = ();
    const KIND: &'static str = "kubernetes";

    fn kept(&self) -> &Kept<()> {
        &self.kept
    }

    fn retime(&self, timing: Timing) {
        *self.timing.lock().unwrap_or_else(PoisonError::into_inner) = timing;
        self.servers.set_loop_wait(timing.loop_wait_ms());
    }

    async fn read(&self, by: Deadline) -> Result<ClusterView, DcsError> {
        let began = self.kept.own();
        self.list_all(by).await?;
        let keys = self.seen.keys(self.timing().ttl);
        self.kept.read_again(began, 0);
        if began == self.kept.own() || began == READ_AGAIN {
            self.kept.took(&keys);
        }
        Ok(view_of(&keys))
    }

    async fn watch_once(&self, wake: &Wake) -> Ended {
        self.follow(wake).await
    }
}
