"""No secret in what people and logs see, and nothing else taken out."""

import pytest

from xlmr_ray.text.redact import carries_secret, clean_url, redacted


@pytest.mark.parametrize(
    ("url", "clean", "secret"),
    [
        ("https://h.example/a/b.parquet?X-Amz-Signature=5f&X-Amz-Date=1", "https://h.example/a/b.parquet", True),
        ("ftp://user:pass-9c@h.example:21/a", "ftp://h.example:21/a", True),
        ("https://pass-9c@h.example", "https://h.example", True),
        ("s3://bucket/part-?/lang=en/*.parquet", "s3://bucket/part-?/lang=en/*.parquet", False),
        ("s3://bucket/a@b/c#d", "s3://bucket/a@b/c#d", False),
        ("https://h.example/a.jsonl", "https://h.example/a.jsonl", False),
        ("https://h.example?token=1", "https://h.example", True),
        ("abfs://box@account.dfs.example/x", "abfs://box@account.dfs.example/x", False),
        ("s3://id:pass-9c@bucket/x", "s3://bucket/x", True),
        ("/data/what?/x@y", "/data/what?/x@y", False),
    ],
)
def test_urls(url, clean, secret):
    assert clean_url(url) == clean
    assert carries_secret(url) is secret
    assert clean_url(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "403, message='Forbidden', url='https://h.example/x?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET'",
        "cannot open ftp://user:SECRET@h.example/x: refused",
        "request X-Amz-Security-Token=SECRET&X-Amz-Date=2 failed",
        "SAS sv=SECRET&sig=SECRET",
        "config: aws_secret_access_key=SECRET, password=SECRET",
        "The key AKIASECRETSECRETSECR does not exist",
    ],
)
def test_secrets_go(text):
    assert "SECRET" not in redacted(text)
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/part-?.parquet: nothing matches this pattern",
        "/data/a.jsonl: 12 tokens, 3 errors; run the job again to go on",
        "cluster.address 10.0.0.1:6379: no Ray cluster there",
    ],
)
def test_the_rest_stays(text):
    assert redacted(text) == text
