// The swarm at a glance.

import { swarm } from "../state/live";
import { useStore } from "../state/store";
import { Badge, Card, Page } from "../ui/parts";

export function SwarmPage() {
  const view = useStore(swarm, (state) => state.view);
  return (
    <Page title="Swarm">
      <Card title="Nodes" flush>
        <table>
          <tbody>
            {view?.nodes.map((node) => (
              <tr key={node.id}>
                <td>{node.name}</td>
                <td>
                  <Badge tone={node.state === "alive" ? "good" : "bad"}>{node.state}</Badge>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </Card>
    </Page>
  );
}
