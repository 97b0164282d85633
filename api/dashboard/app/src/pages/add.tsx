// How another machine becomes part of the swarm.

import { Card, Page } from "../ui/parts";

export function AddPage() {
  return (
    <Page title="Add a machine">
      <Card title="Join">…</Card>
    </Page>
  );
}
