"""Runs in the peer's own environment: ``smpclient`` asks a bench terminal over a serial port."""

import asyncio
import hashlib
import sys
from pathlib import Path

from smpclient import SMPClient
from smpclient.generics import success
from smpclient.requests.file_management import FileHashChecksum
from smpclient.requests.os_management import EchoWrite, MCUMgrParametersRead, OSApplicationInfoRead
from smpclient.transport.serial import SMPSerialTransport


async def main(port: str, file: str) -> None:
    data = Path(file).read_bytes()  # noqa: ASYNC240  # nothing else waits here
    async with SMPClient(SMPSerialTransport(), port, timeout_s=10) as client:
        echo = await client.request(EchoWrite(d="hello"))
        assert success(echo), echo
        assert echo.r == "hello"
        parameters = await client.request(MCUMgrParametersRead())
        assert success(parameters), parameters
        about = await client.request(OSApplicationInfoRead(format="snv"))
        assert success(about), about
        sys.stdout.write(about.output + "\n")
        async for offset in client.upload_file(data, "/lfs/hello.bin"):
            sys.stdout.write(f"{offset}\n")
        digest = await client.request(FileHashChecksum(name="/lfs/hello.bin", type="sha256"))
        assert success(digest), digest
        assert digest.output == hashlib.sha256(data).digest()
        assert await client.download_file("/lfs/hello.bin") == data


asyncio.run(main(*sys.argv[1:]))
