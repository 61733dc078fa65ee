// Figures that are being computed: asks how far they are, and shows the page anew when there is more to see.

const EVERY_MS = 1000;
const SLOW_MS = 10_000;
const root = document.body.dataset.root;

export async function poll(notice) {
  const address = root + notice.dataset.poll;
  for (let pause = EVERY_MS; ; ) {
    await new Promise((resume) => setTimeout(resume, pause));
    try {
      const reply = await fetch(address, { headers: { Accept: "application/json" }, cache: "no-store" });
      if (reply.status !== 202) return location.reload(); // ready, or failed: the page says which
      const { progress } = await reply.json();
      notice.querySelector("progress").value = progress;
      notice.querySelector(".share").textContent = Math.round(100 * progress);
      pause = EVERY_MS;
    } catch {
      pause = Math.min(2 * pause, SLOW_MS); // the service is away
    }
  }
}
