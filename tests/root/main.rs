//! root tests
