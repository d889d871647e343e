"""gRPC servicer: translates between protobuf messages and `Generations`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus.scheduler.v1 import scheduler_pb2_grpc

from services.scheduler.api.access import Access
from services.scheduler.api.generations import Generations
from services.scheduler.api.server_info import ServerInfo


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServiceServicer):
    """The public API. Each call concerns the generations of its tenant only."""

    def __init__(self, generations: Generations, access: Access, server_info: ServerInfo) -> None:
        self._generations = generations
        self._access = access
        self._server_info = server_info

    def _of(self, context: grpc.aio.ServicerContext[Any, Any]) -> Generations:
        """Returns the generations of a call's tenant. Raises UNAUTHENTICATED."""
        return self._generations.for_tenant(self._access.find_tenant(context.invocation_metadata()))

    async def SubmitGeneration(
        self,
        request: pb.SubmitGenerationRequest,
        context: grpc.aio.ServicerContext[pb.SubmitGenerationRequest, pb.SubmitGenerationResponse],
    ) -> pb.SubmitGenerationResponse:
        generations, created = await self._of(context).submit(request)
        return pb.SubmitGenerationResponse(
            generation=generations[0], created=created, generations=generations
        )

    async def GetGeneration(
        self,
        request: pb.GetGenerationRequest,
        context: grpc.aio.ServicerContext[pb.GetGenerationRequest, pb.GetGenerationResponse],
    ) -> pb.GetGenerationResponse:
        return pb.GetGenerationResponse(generation=await self._of(context).get(request.generation_id))

    async def WatchGeneration(
        self,
        request: pb.WatchGenerationRequest,
        context: grpc.aio.ServicerContext[pb.WatchGenerationRequest, pb.WatchGenerationResponse],
    ) -> AsyncIterator[pb.WatchGenerationResponse]:
        watching = self._of(context).watch(request.generation_id, request.after_sequence)
        async with aclosing(watching) as events:
            async for event in events:
                yield pb.WatchGenerationResponse(event=event)

    async def CancelGeneration(
        self,
        request: pb.CancelGenerationRequest,
        context: grpc.aio.ServicerContext[pb.CancelGenerationRequest, pb.CancelGenerationResponse],
    ) -> pb.CancelGenerationResponse:
        return pb.CancelGenerationResponse(generation=await self._of(context).cancel(request.generation_id))

    async def ListGenerations(
        self,
        request: pb.ListGenerationsRequest,
        context: grpc.aio.ServicerContext[pb.ListGenerationsRequest, pb.ListGenerationsResponse],
    ) -> pb.ListGenerationsResponse:
        generations, token = await self._of(context).page(request)
        return pb.ListGenerationsResponse(generations=generations, next_page_token=token)

    async def GetVideo(
        self,
        request: pb.GetVideoRequest,
        context: grpc.aio.ServicerContext[pb.GetVideoRequest, pb.GetVideoResponse],
    ) -> AsyncIterator[pb.GetVideoResponse]:
        info, chunks = await self._of(context).videos.read(
            request.generation_id, request.offset, request.length
        )
        yield pb.GetVideoResponse(header=info)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield pb.GetVideoResponse(chunk=chunk)

    async def GetThumbnail(
        self,
        request: pb.GetThumbnailRequest,
        context: grpc.aio.ServicerContext[pb.GetThumbnailRequest, pb.GetThumbnailResponse],
    ) -> pb.GetThumbnailResponse:
        info, data = await self._of(context).videos.read_thumbnail(request.generation_id)
        return pb.GetThumbnailResponse(info=info, data=data)

    async def GetVideoUrl(
        self,
        request: pb.GetVideoUrlRequest,
        context: grpc.aio.ServicerContext[pb.GetVideoUrlRequest, pb.GetVideoUrlResponse],
    ) -> pb.GetVideoUrlResponse:
        lifetime = request.lifetime if request.HasField("lifetime") else None
        url, expire_time = await self._of(context).videos.make_url(request.generation_id, lifetime)
        return pb.GetVideoUrlResponse(url=url, expire_time=expire_time)

    async def DeleteGeneration(
        self,
        request: pb.DeleteGenerationRequest,
        context: grpc.aio.ServicerContext[pb.DeleteGenerationRequest, pb.DeleteGenerationResponse],
    ) -> pb.DeleteGenerationResponse:
        await self._of(context).delete(request.generation_id)
        return pb.DeleteGenerationResponse()

    async def ListModels(
        self,
        request: pb.ListModelsRequest,
        context: grpc.aio.ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse],
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=await self._of(context).list_models())

    async def GetServerInfo(
        self,
        request: pb.GetServerInfoRequest,
        context: grpc.aio.ServicerContext[pb.GetServerInfoRequest, pb.GetServerInfoResponse],
    ) -> pb.GetServerInfoResponse:
        return self._server_info.describe(self._access.find_tenant(context.invocation_metadata()))

    async def PreviewPlan(
        self,
        request: pb.PreviewPlanRequest,
        context: grpc.aio.ServicerContext[pb.PreviewPlanRequest, pb.PreviewPlanResponse],
    ) -> pb.PreviewPlanResponse:
        return await self._of(context).preview(request.spec)

    async def ReportGeneration(
        self,
        request: pb.ReportGenerationRequest,
        context: grpc.aio.ServicerContext[pb.ReportGenerationRequest, pb.ReportGenerationResponse],
    ) -> pb.ReportGenerationResponse:
        return pb.ReportGenerationResponse(generation=await self._of(context).report(request))

    async def WithdrawReport(
        self,
        request: pb.WithdrawReportRequest,
        context: grpc.aio.ServicerContext[pb.WithdrawReportRequest, pb.WithdrawReportResponse],
    ) -> pb.WithdrawReportResponse:
        generation = await self._of(context).withdraw_report(request.generation_id)
        return pb.WithdrawReportResponse(generation=generation)

    async def ChangePriority(
        self,
        request: pb.ChangePriorityRequest,
        context: grpc.aio.ServicerContext[pb.ChangePriorityRequest, pb.ChangePriorityResponse],
    ) -> pb.ChangePriorityResponse:
        return pb.ChangePriorityResponse(generation=await self._of(context).change_priority(request))
