//! TLS: the certificate that is shown, read from files, and read again when they were renewed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

/// Where certificate and key are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate and those that it was signed by, in this order.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("failed to read {file}: {why}", file = file.display())]
    Read { file: PathBuf, why: pem::Error },
    #[error("{file} holds no certificate (hint: it is to be PEM, and begins with -----BEGIN CERTIFICATE-----)", file = file.display())]
    Empty { file: PathBuf },
    #[error("certificate and key do not fit together: {0}")]
    Fit(rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    SetUp(rustls::Error),
}

/// What TLS shows. Cloned, it is the same.
#[derive(Clone, Debug)]
pub struct Tls {
    files: Files,
    shown: Arc<Shown>,
}

#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Tls {
    /// Reads certificate and key.
    pub fn read(files: Files) -> Result<Tls, TlsError> {
        let shown = Arc::new(Shown(RwLock::new(Arc::new(files.read()?))));
        Ok(Tls { files, shown })
    }

    /// Returns the files that are read.
    pub fn files(&self) -> [&Path; 2] {
        [&self.files.certificate, &self.files.key]
    }

    /// Reads certificate and key again: connections made from now on see them. Where it fails, nothing changes.
    pub fn reread(&self) -> Result<(), TlsError> {
        let read = Arc::new(self.files.read()?);
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }

    /// Returns what accepts connections that speak one of these protocols.
    pub(super) fn acceptor(&self, protocols: &[&[u8]]) -> Result<TlsAcceptor, TlsError> {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().map_err(TlsError::SetUp)?;
        let mut config = config.with_no_client_auth().with_cert_resolver(self.shown.clone());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl Files {
    fn read(&self) -> Result<CertifiedKey, TlsError> {
        let failed = |file: &PathBuf, why| TlsError::Read { file: file.clone(), why };
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|why| failed(&self.certificate, why))?;
        if certificates.is_empty() {
            return Err(TlsError::Empty { file: self.certificate.clone() });
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|why| failed(&self.key, why))?;
        CertifiedKey::from_der(certificates, key, &default_provider()).map_err(TlsError::Fit)
    }
}
