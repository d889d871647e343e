// What HTML alone cannot do: the plan while one writes, live progress, two videos on one clock, masks, hover.
"use strict";

const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

const focusable = "a, button, input, select, summary, [tabindex]";

function showLocalTimes(part) {
  for (const time of part.querySelectorAll("time[datetime]")) {
    time.textContent = new Date(time.dateTime).toLocaleString();
  }
}

// Loads the page again and puts its part with the same id in place of the one shown. The focus stays in its place.
async function replacePart(shown) {
  const answer = await fetch(location.href, { credentials: "same-origin" });
  if (answer.redirected) return location.reload();
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(shown.id);
  if (!fresh) return;
  showLocalTimes(fresh);
  const focused = [...shown.querySelectorAll(focusable)].indexOf(document.activeElement);
  shown.replaceChildren(...fresh.childNodes);
  if (focused >= 0) shown.querySelectorAll(focusable)[focused]?.focus({ preventScroll: true });
}

function previewPlans(form) {
  const panel = document.getElementById("preview");
  let sent = "", latest = 0;
  async function preview() {
    const fields = new FormData(form);
    fields.delete("step_previews"); // it changes nothing of the plan
    const text = new URLSearchParams(fields);
    if (!fields.get("prompt").trim() || text.toString() === sent) return;
    sent = text.toString();
    const number = ++latest;
    panel.classList.add("busy");
    panel.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(form.dataset.preview, { method: "POST", body: text, credentials: "same-origin" });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("preview"), notice = page.querySelector(".notice.bad");
      if (number !== latest) return;
      if (fresh) panel.replaceChildren(...fresh.childNodes);
      if (notice) panel.append(notice);
    } catch {
      sent = "";
    } finally {
      if (number === latest) {
        panel.classList.remove("busy");
        panel.removeAttribute("aria-busy");
      }
    }
  }
  form.addEventListener("change", preview);
  form.addEventListener("submit", (event) => {
    if (event.submitter && event.submitter.hasAttribute("formaction")) {
      event.preventDefault();
      sent = "";
      preview();
    }
  });
  if (!panel.querySelector(".sentence")) preview();
}

function followEvents(part) {
  const source = new EventSource(part.dataset.events);
  const news = document.getElementById("news");
  let loading = false, again = false;
  async function show() {
    if (loading) { again = true; return; }
    loading = true;
    do {
      again = false;
      await replacePart(part).catch(() => {});
    } while (again);
    loading = false;
    news.textContent = part.querySelector("[data-news]")?.textContent ?? "";
  }
  for (const kind of ["queued", "waiting", "paused", "planned", "started", "step_completed", "warning"]) {
    source.addEventListener(kind, show);
  }
  for (const kind of ["succeeded", "failed", "cancelled"]) {
    source.addEventListener(kind, () => { source.close(); location.reload(); });
  }
}

function refresh(part) {
  setInterval(() => {
    // Not under someone's finger: another row could take the place of the one in focus.
    if (!document.hidden && !part.contains(document.activeElement)) replacePart(part).catch(() => {});
  }, 1000 * Number(part.dataset.refresh));
}

function playOnHover(video) {
  const link = video.closest("a");
  const start = () => {
    if (!video.src) video.src = video.dataset.hover;
    video.play().catch(() => {});
  };
  const stop = () => video.pause();
  link.addEventListener("mouseenter", start);
  link.addEventListener("mouseleave", stop);
  link.addEventListener("focus", start);
  link.addEventListener("blur", stop);
}

// The clock is that of the main video; the others follow in proportion, since lengths may differ.
function joinPlayers(stage) {
  const videos = [...stage.querySelectorAll("video")], main = stage.querySelector("video[data-main]");
  const clock = stage.querySelector("[data-clock]"), time = stage.querySelector("[data-time]");
  const play = stage.querySelector("[data-play]"), masks = stage.querySelector("[data-masks]");
  const others = videos.filter((video) => video !== main);
  const share = () => (main.duration ? main.currentTime / main.duration : 0);
  function showMask() {
    for (const mask of stage.querySelectorAll("[data-mask]")) {
      mask.toggleAttribute("hidden", !masks || mask.dataset.mask !== masks.value);
      const paths = [...mask.children];
      const current = Math.min(paths.length - 1, Math.floor(share() * paths.length));
      paths.forEach((path, index) => path.classList.toggle("away", index !== current));
    }
  }
  function align(exact) {
    for (const video of others) {
      const wanted = share() * (video.duration || 0);
      if (Math.abs(video.currentTime - wanted) > (exact ? 0.001 : 0.12)) video.currentTime = wanted;
    }
  }
  function show() {
    clock.value = Math.round(1000 * share());
    time.textContent = `${main.currentTime.toFixed(1)} s`;
    clock.setAttribute("aria-valuetext", time.textContent);
    showMask();
  }
  function seek(seconds) {
    main.currentTime = Math.max(0, Math.min(seconds, main.duration || 0));
    align(true);
    show();
  }
  function pause() { videos.forEach((video) => video.pause()); }
  function tick() {
    if (main.paused) return;
    align(false);
    show();
    requestAnimationFrame(tick);
  }
  play.addEventListener("click", () => (main.paused ? videos.forEach((v) => v.play().catch(() => {})) : pause()));
  main.addEventListener("play", () => { play.textContent = "Pause"; play.setAttribute("aria-pressed", "true"); tick(); });
  main.addEventListener("pause", () => { play.textContent = "Play"; play.setAttribute("aria-pressed", "false"); });
  main.addEventListener("seeked", show);
  main.addEventListener("loadedmetadata", show);
  clock.addEventListener("input", () => { pause(); seek((Number(clock.value) / 1000) * (main.duration || 0)); });
  for (const button of stage.querySelectorAll("[data-frame]")) {
    button.addEventListener("click", () => {
      pause();
      seek(main.currentTime + Number(button.dataset.frame) / (Number(clock.dataset.fps) || 8));
    });
  }
  if (masks) masks.addEventListener("change", showMask);
  for (const wipe of stage.querySelectorAll("[data-wipe]")) {
    const wiped = stage.querySelector("[data-wiped]");
    const cut = () => {
      wiped.style.setProperty("--wipe", `${wipe.value}%`);
      wipe.setAttribute("aria-valuetext", `${wipe.value} %`);
    };
    wipe.addEventListener("input", cut);
    cut(); // a browser may restore the position of an earlier visit
  }
  for (const controls of stage.querySelectorAll("[data-controls]")) controls.hidden = false;
}

document.querySelectorAll("[data-preview]").forEach(previewPlans);
document.querySelectorAll("[data-events]").forEach(followEvents);
document.querySelectorAll("[data-refresh]").forEach(refresh);
document.querySelectorAll("[data-players]").forEach(joinPlayers);
if (!calm) document.querySelectorAll("video[data-hover]").forEach(playOnHover);
showLocalTimes(document);
