//! The headers that every full answer carries. (REST-002, REST-302, REST-303)

use crate::api::answer::Normal;
use crate::api::settings::RestConfig;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use warp::reply::Response;

#[derive(Clone, Debug)]
pub struct Dress {
    server: HeaderValue,
    extra: Vec<(HeaderName, HeaderValue)>,
}

impl Dress {
    /// # Errors
    /// The header that HTTP cannot carry.
    pub fn new(config: &RestConfig) -> Result<Self, String> {
        let mut extra: Vec<(HeaderName, HeaderValue)> = Vec::new();
        let https = config.https_extra_headers.iter().filter(|_| config.certfile.is_some());
        for (name, value) in config.http_extra_headers.iter().chain(https) {
            let error = || format!("{name}: {value}");
            let name = HeaderName::try_from(name.as_str()).map_err(|_| error())?;
            let value = HeaderValue::try_from(value.as_str()).map_err(|_| error())?;
            extra.retain(|(earlier, _)| *earlier != name);
            extra.push((name, value));
        }
        let server = HeaderValue::try_from(config.server_tokens.header())
            .map_err(|_| "Server".to_owned())?;
        Ok(Self { server, extra })
    }

    /// Bare answers stay bare; error pages get no extra headers. (REST-002, REST-302)
    pub fn put_on(&self, response: &mut Response) {
        let is_normal = response.extensions_mut().remove::<Normal>().is_some();
        let headers = response.headers_mut();
        if headers.contains_key(CONTENT_TYPE) {
            headers.insert(SERVER, self.server.clone());
        }
        if is_normal {
            for (name, value) in &self.extra {
                headers.insert(name.clone(), value.clone());
            }
        }
    }
}
